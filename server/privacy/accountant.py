"""Privacy accountant: counts the noisy sums of each site, and what they amount to (epsilon).

A release counts from the moment a site is asked: whether its reply arrived changes nothing about what it may
have told. The count lies in the run directory and never goes back, also where a run is resumed from an
earlier round. A draw of sites per round lowers the count of those that were not drawn; it is no secret (it
follows from the seed), so that nothing else is gained by it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
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
    """Return the releases by site; raises `UserError` for a file that this program did not write."""
    path = run_dir / FILE
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["releases"]
        return {str(name): int(count) for name, count in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{path} is broken, so that nobody knows what the sites have given away; start a run of its own."
        ) from None


def spend(run_dir: Path, names: Iterable[str], releases: int) -> None:
    """Note that these sites are asked for so many noisy sums; done before they are."""
    found = read_releases(run_dir)
    for name in names:
        found[name] = found.get(name, 0) + releases
    atomic_write_text(run_dir / FILE, json.dumps({"releases": dict(sorted(found.items()))}, indent=2))


def migrate_releases(earlier: Path, run_dir: Path) -> None:
    """Take what an earlier run directory counted into the one in which its run goes on."""
    found = read_releases(earlier)
    if found and earlier.resolve() != run_dir.resolve():
        # the larger count is never too small: privacy that is spent does not come back
        both = {name: max(found.get(name, 0), count) for name, count in read_releases(run_dir).items()}
        atomic_write_text(run_dir / FILE, json.dumps({"releases": found | both}, indent=2))


def spent(run_dir: Path, privacy: Privacy) -> float:
    """Return epsilon of the site that gave most so far; infinity in a run without noise."""
    most = max(read_releases(run_dir).values(), default=0)
    return epsilon_of(privacy.noise_multiplier, most, privacy.delta)
