"""What a site remembers during a secure sum, in a file of its own for each run and sum.

Every message may be handled by a new process, so secrets lie in the site's state folder, readable by its user only.
Each is blanked when its last use is over. The next sum of the same run replaces the file; runs do not meet.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from client.site import SiteConfig
from common import wire
from common.errors import UserError
from common.privacy.binding import Announcement, hashed, session_of
from common.system.atomic import atomic_write_bytes

SUMS_FOLDER = "secure-sums"
# Files of other runs that stay: more than run at once anywhere.
_MOST_FILES = 16


@dataclass
class Secrets:
    """What a site keeps during one secure sum; bytes as hex, so that the file is plain JSON."""

    session: str
    mask_key: str
    cipher_key: str
    seed: str
    roster: dict[str, Announcement] = field(default_factory=dict)
    needed: int = 0  # how many of the roster have to stay
    own_shares: list[str] = field(default_factory=list)  # this site's, of its own seed and key
    included: list[str] = field(default_factory=list)  # sites whose masks are in the total
    context: str = ""  # hash of all that this site was asked
    survivors: list[str] = field(default_factory=list)  # sites that this site signed for
    answered: bool = False


def session_name(task: wire.Task) -> str:
    """Return the name of the sum that a message is about."""
    return session_of(task.run_key, task.round, str(task.options["secure.session"]))


def _path(site: SiteConfig, task: wire.Task) -> Path:
    run, session = hashed("run", task.run_key).hex()[:16], session_name(task)[:16]
    return site.state_dir / site.name / SUMS_FOLDER / f"{run}-{session}.json"


def begin_sum(site: SiteConfig, task: wire.Task, kept: Secrets) -> None:
    """Keep the secrets of a new sum; those of earlier sums of the same run go, and of runs long ago."""
    path = _path(site, task)
    folder = path.parent
    own = folder.glob(f"{path.name.partition('-')[0]}-*.json")
    _drop(own)
    others = sorted(folder.glob("*.json"), key=_age, reverse=True)
    _drop(others[_MOST_FILES - 1 :])
    save_secrets(site, task, kept)


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # another run's process has dropped it meanwhile
        return 0.0


def _drop(paths: Iterable[Path]) -> None:
    for path in list(paths):
        path.unlink(missing_ok=True)


def save_secrets(site: SiteConfig, task: wire.Task, kept: Secrets) -> None:
    """Write the secrets of a sum."""
    atomic_write_bytes(_path(site, task), json.dumps(asdict(kept)).encode(), private=True)


def load_secrets(site: SiteConfig, task: wire.Task) -> Secrets:
    """Read the secrets of the sum that a message is about; raises `UserError` where there are none."""
    try:
        fields: dict[str, Any] = json.loads(_path(site, task).read_text(encoding="utf-8"))
        fields["roster"] = {name: Announcement(**one) for name, one in fields["roster"].items()}
        kept = Secrets(**fields)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise UserError(
            "This site has no secrets for this secure sum; it takes part again in the next one."
        ) from None
    if kept.session != session_name(task):
        raise UserError("The server speaks of another secure sum than this site's; it is left out.")
    return kept
