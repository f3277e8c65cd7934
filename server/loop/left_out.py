"""Sites whose replies were refused in several rounds running: they are left out until somebody asks them back.

``left-out.json`` of the run directory holds every site whose last reply was refused, in how many rounds running, and
why. Whoever takes a site out of it, or deletes the file, asks it back; the server looks before each round.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, TypeAdapter, ValidationError

from common.system.atomic import atomic_write_text
from server.transport.exchange import Replies

log = logging.getLogger(__name__)

LEFT_OUT_FILE = "left-out.json"
# A reply may be wrong by an accident of one round; nobody has three of them in a row.
MOST_REFUSALS = 3


class _Refused(BaseModel):
    """How often running a site's replies were refused, in which round last, and why."""

    rounds: int
    round: int
    reason: str


_FILE = TypeAdapter(dict[str, _Refused])


@dataclass
class LeftOut:
    """The file, and what it said last; what it says of ``next_round`` or later was written before a resume."""

    path: Path
    next_round: int = 1
    _sites: dict[str, _Refused] = field(default_factory=dict)

    def reasons(self) -> dict[str, str]:
        """Read the file and return which sites take no part, and why."""
        self._read()
        return {
            name: f"its replies were refused in {entry.rounds} rounds running, at last because {entry.reason}; take it "
            f"out of {LEFT_OUT_FILE} to ask it back"
            for name, entry in self._sites.items()
            if entry.rounds >= MOST_REFUSALS
        }

    def note(self, number: int, replies: Replies) -> None:
        """Count the replies of a round; sites that were absent are as before."""
        self._read()  # somebody may have changed it meanwhile
        before = dict(self._sites)
        for name in replies.updates.keys() - replies.refused:
            self._sites.pop(name, None)
        for name in sorted(replies.refused):
            rounds = 1 + (self._sites[name].rounds if name in self._sites else 0)
            self._sites[name] = _Refused(rounds=rounds, round=number, reason=replies.quarantined[name])
            if rounds == MOST_REFUSALS:
                log.warning(
                    "site %s is left out from now on; take it out of %s to ask it back", name, self.path
                )
        self.next_round = number + 1
        if self._sites != before:
            atomic_write_text(self.path, _FILE.dump_json(self._sites, indent=2).decode() + "\n")

    def _read(self) -> None:
        try:
            found = _FILE.validate_json(self.path.read_bytes()) if self.path.is_file() else {}
        except ValidationError as error:
            log.warning(
                "%s cannot be read (%s); what it said before holds", self.path, error.errors()[0]["msg"]
            )
            return
        self._sites = {name: entry for name, entry in found.items() if entry.round < self.next_round}
