"""Networks on a site's disk between rounds: what the next message refers to, and one that never leaves the site.

With ``wire.differences`` a site keeps the weights that it received, to which the next changes are added, and what
rounding left out of its own. With ``centroids.share`` "none" it keeps the network that it trains for itself.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from client.site import SiteConfig
from client.state import load_state, save_state, without_prefix
from common import wire
from common.checkpoint import arrays_hash
from common.errors import UserError
from common.models.differences import CODES, REFERENCE, SCALES, add_changes, decode_change, encode_change
from common.settings.schema import RunConfig

# A run that is resumed is sent whole weights; more than what rounding left out is not asked for then.
KEPT_ROUNDS = 2

_RECEIVED, _LEFT, _OWN = "received/", "left/", "own/"
_MODEL = ("weights", "statistics")


class KeptNetwork:
    """What a site holds of a run's network before a round, and how it travels."""

    def __init__(self, task: wire.Task, settings: RunConfig, site: SiteConfig, before_round: int) -> None:
        """Read what lies on the disk since before a round, where the settings let anything lie there."""
        self.task, self.settings = task, settings
        self.folder = site.state_dir / site.name
        self.stays, self.kind = settings.network_stays, settings.wire.differences
        used = self.stays or self.kind != "none"
        self.state = load_state(self.folder, task.run_key, before_round) if used else {}

    def received(self) -> wire.Task:
        """Return the message with a whole network in it: the one sent, that with its changes, or this site's own.

        Raises `UserError` where the message refers to a network that does not lie here.
        """
        if self.stays:
            return self._own()
        groups = dict(self.task.groups)
        if CODES not in groups:
            return self.task
        base = without_prefix(self.state, _RECEIVED)
        if not base or arrays_hash(base) != self.task.options.get(REFERENCE):
            raise UserError(
                "The network that the server's changes refer to is not on this site's disk; it will be sent whole."
            )
        groups["weights"] = add_changes(base, groups.pop(CODES), groups.pop(SCALES))
        return replace(self.task, groups=groups)

    def _own(self) -> wire.Task:
        own = without_prefix(self.state, _OWN)
        if own:
            groups = {name: without_prefix(own, f"{name}/") for name in _MODEL}
            return replace(self.task, groups=dict(self.task.groups) | groups)
        if "weights" not in self.task.groups:
            raise UserError(
                "The network that this site trained in earlier rounds is not on its disk any more, and nobody else "
                "has it (centroids.share is 'none'); start the run anew."
            )
        return self.task

    def reply(self, received: wire.Task, weights: wire.Arrays) -> tuple[wire.Groups, wire.Options]:
        """Return trained weights as they travel, and keep what the next round needs."""
        if self.kind == "none":
            return {"weights": weights}, {}
        base = received.groups["weights"]
        left = without_prefix(self.state, _LEFT)
        codes: wire.Arrays = {}
        scales: wire.Arrays = {}
        for key, value in weights.items():
            change = value - base[key] + left.get(key, np.float32(0))
            codes[key], scales[key] = encode_change(change, self.kind)
            left[key] = change - decode_change(codes[key], scales[key])
        self._save({_RECEIVED: base, _LEFT: left}, KEPT_ROUNDS)
        return {CODES: codes, SCALES: scales}, {REFERENCE: arrays_hash(dict(base))}

    def keep_own(self, weights: wire.Arrays, statistics: wire.Arrays) -> None:
        """Keep the network that this site trains for itself."""
        groups = {f"{_OWN}weights/": weights, f"{_OWN}statistics/": statistics}
        self._save(groups, self.settings.checkpoint.keep)

    def _save(self, groups: dict[str, wire.Arrays], keep: int) -> None:
        state = {
            f"{prefix}{key}": value for prefix, arrays in groups.items() for key, value in arrays.items()
        }
        save_state(self.folder, self.task.run_key, self.task.round, state, keep)
