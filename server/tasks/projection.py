"""The projection of a closed form beside its first round: what it remembers, sites that come late, and a robust sum."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from common.losses.base import ClosedForm, NamedArrays, closed_form
from common.settings.schema import RunConfig
from common.wire import SUMS, Arrays, Update
from server.centroids.base import CENTROID_RULES, directions
from server.centroids.matched import geometric_median
from server.states import ModelState, private_groups
from server.tasks.plausibility import energy, energy_fault
from server.transport.reply_checks import Ask, Plausible, ReplySchema, Sender

log = logging.getLogger(__name__)

# Of a state's memory: the sums that made the head, and whose they are, names as bytes with a line break between them.
_TOTAL, _SITES = "projection/", "projection-sites"
_CENTROIDS = "centroids/"


def remembered_sums(sent: Mapping[str, NamedArrays], config: RunConfig) -> Arrays:
    """Return what a state keeps of the sums behind its head: their total, and the names of the sites.

    Empty where no further site could be added: under a robust rule, and where the server knows totals only.
    """
    closed = closed_form(config)
    if closed is None or not _adds_up(config):
        return {}
    total: Arrays = {}
    for name in sorted(sent):
        for key, value in closed.pack(sent[name]).items():
            total[key] = total[key] + value if key in total else np.array(value, dtype=np.float64)
    # float32: it lies in every checkpoint
    return {_TOTAL + key: value.astype(np.float32) for key, value in total.items()} | {
        _SITES: _as_bytes(sent)
    }


def _adds_up(config: RunConfig) -> bool:
    robust = CENTROID_RULES.facts(config.centroids.merge).robust
    return not (robust or config.privacy.totals_only or private_groups(config))


def _as_bytes(names: Mapping[str, object] | set[str]) -> np.ndarray:
    return np.frombuffer("\n".join(sorted(names)).encode(), dtype=np.uint8).copy()


def late_sites(state: ModelState, names: Sequence[str], config: RunConfig) -> list[str]:
    """Return which of these sites' patches played no part in the head; none where it cannot be added to."""
    if not (state.solved and _SITES in state.memory and _adds_up(config)):
        return []
    known = set(state.memory[_SITES].tobytes().decode().split("\n"))
    return [name for name in names if name not in known]


def known_sums(state: ModelState, closed: ClosedForm) -> dict[str, np.ndarray]:
    """Return the sums behind a state's head, as one site that holds all patches would send them."""
    return closed.unpack(
        {
            key.removeprefix(_TOTAL): value.astype(np.float64)
            for key, value in state.memory.items()
            if key.startswith(_TOTAL)
        }
    )


def ask_late(
    state: ModelState, names: Sequence[str], ask: Ask, config: RunConfig, plausible: Plausible
) -> ModelState:
    """Ask sites that came late for their sums, and return the state with theirs among them (`take_in`)."""
    closed, late = closed_form(config), late_sites(state, names, config)
    if closed is None or not late:
        return state
    usual = energy(known_sums(state, closed))

    def fault(update: Update, sender: Sender) -> str | None:
        return plausible(update, sender) or energy_fault(update.groups[closed.kind], usual)

    schema = ReplySchema({closed.kind: closed.shapes(state.head["linear.weight"].shape[1])}, None, fault)
    return take_in(state, ask(late, SUMS, schema), config)


def take_in(state: ModelState, updates: Mapping[str, Update], config: RunConfig) -> ModelState:
    """Return a state whose head is that of all sites, those that came late included.

    Sums add up, so that the head is the one of a run in which they were there from the start. Centroids are carried
    over: where codes were z = W x + b and are W' x + b' now, directions go by W' W^+ , the map that fits them best.
    """
    closed = closed_form(config)
    if closed is None or not updates:
        return state
    sent = {name: update.groups[closed.kind] for name, update in updates.items()}
    joined = {"": known_sums(state, closed)} | sent
    try:
        head, _ = closed.merge([joined[name] for name in sorted(joined)])
    except ValueError as error:
        log.warning("sites that came late are not taken into the projection: %s", error)
        return state
    carry = head["linear.weight"].astype(np.float64) @ np.linalg.pinv(
        state.head["linear.weight"].astype(np.float64)
    )

    def carried(centroids: np.ndarray) -> np.ndarray:
        return directions(centroids.astype(np.float64) @ carry.T).astype(centroids.dtype)

    known = set(state.memory[_SITES].tobytes().decode().split("\n")) | set(sent)
    memory = {key: value for key, value in state.memory.items() if not key.startswith(_CENTROIDS)}
    memory |= remembered_sums(joined, config) | {_SITES: _as_bytes(known)}
    log.info("taken into the projection: %s", ", ".join(sorted(sent)))
    starts = state.starts | ({"centroids": carried(state.starts["centroids"])} if state.starts else {})
    return replace(state, head=head, centroids=carried(state.centroids), starts=starts, memory=memory)


def middle_sums(parts: Sequence[NamedArrays], closed: ClosedForm) -> dict[str, np.ndarray]:
    """Return the geometric median of the sites' sums a patch, as a site would send it; every site has one vote.

    It is a weighted mean of them, so that matrices stay those of patches. A minority cannot carry it away (Pillutla,
    Kakade and Harchaoui, "Robust Aggregation for Federated Learning", 2019).
    """
    packed = [closed.pack(part) for part in parts]
    counts = [float(sums["weights"][0]) for sums in packed]
    keys = sorted(packed[0])
    rows = {
        key: np.stack([sums[key] / count for sums, count in zip(packed, counts, strict=True)]) for key in keys
    }
    # kinds of sums have different units: each is measured by its usual length
    units = {key: max(float(np.median(np.linalg.norm(rows[key], axis=1))), 1e-12) for key in keys}
    middle = geometric_median(np.concatenate([rows[key] / units[key] for key in keys], axis=1))
    ends = np.cumsum([rows[key].shape[1] for key in keys])[:-1]
    split = dict(zip(keys, np.split(middle, ends), strict=True))
    return closed.unpack({key: split[key] * units[key] * sum(counts) for key in keys})
