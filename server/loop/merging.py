"""Merges the replies of a round so that no reply can end a run: the one that breaks the merge is left out by name."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from common import wire
from server.aggregation.heads import TooFewSites
from server.tasks.base import Saved, Training
from server.transport.exchange import Replies

log = logging.getLogger(__name__)

# Parts of a checkpoint that are single sites' own, and were checked as they came.
_OWN = "site/"


def merge_replies(training: Training, state: Any, replies: Replies, number: int) -> tuple[Any, str]:
    """Return the next state, and why the round does not count, or nothing.

    Replies that cannot be honest beside the others are left out first. Where the merge fails, each reply is tried
    alone, then without each of them in turn; whoever makes it fail is left out, and the others merge. ``replies`` takes
    the reasons.
    """
    for name, reason in training.outliers(replies.updates).items():
        replies.refuse(name, reason)
    while True:
        needed = training.config.sites.minimum
        if len(replies.updates) < needed:
            return state, f"{len(replies.updates)} usable replies, {needed} needed"
        try:
            return _merged(training, state, replies.to_merge, number), ""
        except TooFewSites as error:
            return state, str(error).rstrip(".")
        except (OSError, MemoryError):  # the server's own trouble
            raise
        except Exception as error:
            log.warning("round %d cannot be merged (%s); each reply is tried alone", number, _words(error))
            if replies.total is not None:
                return state, f"its total cannot be merged ({_words(error)})"
            guilty = _guilty(training, state, replies.updates, number)
            if not guilty:
                log.exception("round %d cannot be merged, whichever site is left out", number)
                return state, f"its replies cannot be merged ({_words(error)})"
            for name, reason in guilty.items():
                replies.refuse(name, f"its reply cannot be merged ({reason})")


def _merged(training: Training, state: Any, updates: Mapping[str, wire.Update], number: int) -> Any:
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        merged = training.merge(state, updates, number)
    if broken := _not_finite(training.saved(merged)):
        raise ValueError(f"{broken} of the next model holds NaN or infinity")
    return merged


def _not_finite(saved: Saved) -> str:
    arrays = {"centroids": saved.centroids} | dict(saved.head)
    arrays |= {key: value for key, value in saved.extra.items() if not key.startswith(_OWN)}
    return next((k for k, v in arrays.items() if v.dtype.kind == "f" and not np.isfinite(v).all()), "")


def _guilty(
    training: Training, state: Any, updates: Mapping[str, wire.Update], number: int
) -> dict[str, str]:
    """Return whose replies cannot be merged alone; if there are none, the first one without whom the others can be.

    Where no reply at all can be merged the fault is not a site's: then there is nobody.
    """
    found = {}
    for name, update in updates.items():
        if reason := _failure(training.alone(), state, {name: update}, number):
            found[name] = reason
    if found:
        return found if len(found) < len(updates) else {}
    for name in updates if len(updates) > 1 else ():
        others = {key: update for key, update in updates.items() if key != name}
        if not _failure(training, state, others, number):
            return {name: "without it the others can be"}
    return {}


def _failure(training: Training, state: Any, updates: Mapping[str, wire.Update], number: int) -> str:
    try:
        _merged(training, state, updates, number)
    except Exception as error:
        return _words(error)
    return ""


def _words(error: Exception) -> str:
    return (str(error) or type(error).__name__).rstrip(".")
