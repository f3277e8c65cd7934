"""Privacy accountant: counts the noisy sums of each site, and what they amount to (epsilon).

A release counts from the moment a site is asked: whether its reply arrived changes nothing about what it may
have told. The count lies in the run directory and never goes back, also where a run is resumed from an
earlier round. A draw of sites per round lowers the count of those that were not drawn; it is no secret (it
follows from the seed), so that nothing else is gained by it.

An account belongs to a key that is registered at the SuperLink: a site that calls itself otherwise goes on with it.
Where keys are made anew at each start (on loopback), and in simulations, it belongs to the name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from common.errors import UserError
from common.losses.base import TRAIN
from common.privacy.epsilon import delta_of, epsilon_of
from common.settings.privacy import Privacy
from common.system.atomic import atomic_write_text

__all__ = ["delta_of", "epsilon_of"]  # the formulas are those of sites as well

FILE = "privacy.json"


def releases_of(phase: str) -> int:
    """Return how many noisy sums a site gives away in a round of a kind (`common.losses.base`)."""
    return 2 if phase == TRAIN else 1  # steps: the head's change, and the centroid sums


def read_releases(run_dir: Path) -> dict[str, int]:
    """Return the releases by account; raises `UserError` for a file that this program did not write."""
    return _read(run_dir)[0]


def _read(run_dir: Path) -> tuple[dict[str, int], dict[str, str]]:
    """Return the releases by account, and whose account a key or a name goes on with."""
    path = run_dir / FILE
    if not path.is_file():
        return {}, {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        releases = {str(name): int(count) for name, count in found["releases"].items()}
        return releases, {str(one): str(account) for one, account in found.get("accounts", {}).items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{path} is broken, so that nobody knows what the sites have given away; start a run of its own."
        ) from None


def _write(run_dir: Path, releases: Mapping[str, int], accounts: Mapping[str, str]) -> None:
    known: dict[str, object] = {"releases": dict(sorted(releases.items()))}
    if accounts:
        known["accounts"] = dict(sorted(accounts.items()))
    atomic_write_text(run_dir / FILE, json.dumps(known, indent=2))


def spend(run_dir: Path, names: Iterable[str], releases: int, keys: Mapping[str, str] | None = None) -> None:
    """Note that these sites are asked for so many noisy sums; done before they are.

    ``keys`` are hashes of registered keys, by name.
    """
    found, accounts = _read(run_dir)
    for name in names:
        key = (keys or {}).get(name, "")
        # the key says who it is; a name that is known has been told by somebody with an account
        account = accounts.get(key) or accounts.get(name, name)
        if key:
            accounts |= {key: account, name: account}
        found[account] = found.get(account, 0) + releases
    _write(run_dir, found, accounts)


def migrate_releases(earlier: Path, run_dir: Path) -> None:
    """Take what an earlier run directory counted into the one in which its run goes on."""
    found, accounts = _read(earlier)
    if found and earlier.resolve() != run_dir.resolve():
        # the larger count is never too small: privacy that is spent does not come back
        here, known = _read(run_dir)
        both = {name: max(found.get(name, 0), count) for name, count in here.items()}
        _write(run_dir, found | both, known | accounts)


def spent(run_dir: Path, privacy: Privacy) -> float:
    """Return epsilon of the site that gave most so far; infinity in a run without noise."""
    most = max(read_releases(run_dir).values(), default=0)
    return epsilon_of(privacy.noise_multiplier, most, privacy.delta)
