"""Networks that sites hold, as the server knows them, so that weights travel as changes (`common.models.differences`).

A site that answered a round holds the weights that it was sent then, and says so by their hash. It is next sent the
rounded change from these to the weights that it shall have; the sum is what both sides hold from there on, to the
bit. A site that did not answer, or holds something else, gets whole weights. Weights lie in files without names; sites
that hold the same share them, so that memory does not grow with sites and disk does with their differences alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from common import wire
from common.checkpoint import arrays_hash
from common.models.differences import (
    CODES,
    REFERENCE,
    SCALES,
    add_changes,
    decode_change,
    encode_change,
    rows,
)
from common.settings.federation import Wire
from server.transport.reply_checks import ReplySchema

_Keep = Callable[[Sequence[np.ndarray]], list[np.ndarray]]


@dataclass
class HeldNetworks:
    """What sites hold, by site name; ``keep`` moves arrays to where they need no memory.

    ``confirmed`` is what sites said they hold, ``sent`` what they will hold once they answer.
    """

    settings: Wire
    keep: _Keep
    confirmed: dict[str, wire.Arrays] = field(default_factory=dict)
    sent: dict[str, wire.Arrays] = field(default_factory=dict)
    _rounded: dict[tuple[int, int], tuple[np.ndarray, ...]] = field(default_factory=dict)
    _hashes: dict[tuple[int, ...], str] = field(default_factory=dict)

    def begin(self) -> None:
        """Forget what was computed for the messages of a round before."""
        self._rounded.clear()
        self._hashes.clear()

    def message(
        self, site: str, groups: Mapping[str, wire.Arrays], options: wire.Options
    ) -> tuple[wire.Groups, wire.Options]:
        """Return a message's groups with changes in the place of weights, where the site holds any."""
        wanted, base = groups["weights"], self.confirmed.pop(site, None)
        if base is None or base.keys() != wanted.keys():
            self.sent[site] = self._as_read(wanted)
            return dict(groups), options
        self._round(base, wanted)
        found = {key: self._rounded[id(base[key]), id(value)] for key, value in wanted.items()}
        self.sent[site] = {key: parts[2] for key, parts in found.items()}
        changes: wire.Groups = {
            CODES: {key: parts[0] for key, parts in found.items()},
            SCALES: {key: parts[1] for key, parts in found.items()},
        }
        others = {name: arrays for name, arrays in groups.items() if name != "weights"}
        return changes | others, options | {REFERENCE: self._hash(base)}

    def schema(self, expected: ReplySchema) -> ReplySchema:
        """Return how a reply looks on the wire that holds the expected weights as changes."""
        shapes = dict(expected.shapes)
        if "weights" not in shapes:
            return expected
        weights = shapes.pop("weights")
        scales = {key: (rows(shape),) for key, shape in weights.items()}
        # what the task knows of honest weights is asked of the sums
        return replace(expected, shapes={CODES: weights, SCALES: scales} | shapes, plausible=None)

    def whole(self, site: str, update: wire.Update) -> tuple[wire.Update | None, str | None]:
        """Return a checked reply with the weights that its changes make; or None and what is wrong with them."""
        base = self.sent.pop(site, None)
        groups = dict(update.groups)
        if CODES not in groups:
            return update, None
        if base is None:
            return None, "it sends changes, but was sent no weights"
        weights = add_changes(base, groups.pop(CODES), groups.pop(SCALES))
        for key, value in weights.items():
            if not np.isfinite(value).all():
                return None, f"'weights/{key}' holds NaN or infinity"
        if update.facts.get(REFERENCE) != self._hash(base):
            return None, "its changes refer to other weights than it was sent"
        self.confirmed[site] = base
        return replace(update, groups={"weights": weights} | groups), None

    def _as_read(self, weights: wire.Arrays) -> wire.Arrays:
        """Return whole weights as a site reads them off the wire, once for all sites."""
        if self.settings.dtype == "float32":
            return weights
        new = {key: value for key, value in weights.items() if (id(value), 0) not in self._rounded}
        read = self.keep([value.astype(np.float16).astype(np.float32) for value in new.values()])
        for value, kept in zip(new.values(), read, strict=True):
            self._rounded[id(value), 0] = (kept, value)  # the second keeps the identity taken
        return {key: self._rounded[id(value), 0][0] for key, value in weights.items()}

    def _round(self, base: wire.Arrays, wanted: wire.Arrays) -> None:
        """Compute codes, scales, and what a site will hold, once for all sites that hold and get the same."""
        new = [(base[key], value) for key, value in wanted.items()]
        new = [(old, value) for old, value in new if (id(old), id(value)) not in self._rounded]
        made = [encode_change(value - old, self.settings.differences) for old, value in new]
        after = [old + decode_change(*parts) for (old, _), parts in zip(new, made, strict=True)]
        for (old, value), parts, kept in zip(new, made, self.keep(after), strict=True):
            self._rounded[id(old), id(value)] = (*parts, kept, old, value)

    def _hash(self, arrays: wire.Arrays) -> str:
        key = tuple(id(value) for value in arrays.values())
        if key not in self._hashes:
            self._hashes[key] = arrays_hash(arrays)
        return self._hashes[key]
