"""Searches for sites whose masked numbers spoil a sum, by sums over parts of the sites.

Nobody sees who spoiled a sum. Where one is nonsense, its sites are divided at random, and each part sums on its own.
What is sound counts, what is not is divided again, never below the size in which a site stays hidden. The parts of
one search lie inside each other, so that all sums together tell no more than those of the smallest parts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from common import wire
from common.privacy.packed_sums import PackedSums


@dataclass(frozen=True)
class GroupSum:
    """The sum over some sites: totals by ``group/key``, or None and why.

    Attributes:
        replies: of the sites in the total.
        needed: how many of them the sum needed.
        blamed: sites without which another sum may work.
        spoiled: whether the total came, and no honest sites can have made it.
    """

    totals: PackedSums | None
    replies: Mapping[str, wire.Update] = field(default_factory=dict)
    needed: int = 1
    blamed: frozenset[str] = frozenset()
    spoiled: bool = False


# Asks sites for their sum; the second argument numbers the attempts.
AskGroup = Callable[[Sequence[str], int], GroupSum]


@dataclass
class SoundSums:
    """What a search found: the sound sums, of different sites, and the parts that are nonsense."""

    good: list[GroupSum] = field(default_factory=list)
    bad: list[tuple[str, ...]] = field(default_factory=list)


@dataclass
class Suspects:
    """Sites that were in every part that was nonsense, over the rounds of a run; one that is left alone is known."""

    names: frozenset[str] = frozenset()
    barred: dict[str, str] = field(default_factory=dict)

    def narrow(self, bad: Sequence[tuple[str, ...]]) -> None:
        """Take notice of the parts that were nonsense in one more search."""
        for part in bad:
            # somebody else may have joined in, or taken turns: then the search starts anew
            self.names = (self.names & frozenset(part)) or frozenset(part)
            if len(self.names) == 1:
                name = next(iter(self.names))
                self.barred[name] = (
                    "every sum that it was in was nonsense; it is left out for the rest of the run"
                )
                self.names = frozenset()


def sound_sums(ask: AskGroup, names: Sequence[str], fewest: int, seed: str, trusting: bool) -> SoundSums:
    """Return the sums that are sound.

    Args:
        names: the sites that are asked, all of them at first.
        fewest: no part is smaller.
        seed: draws the parts.
        trusting: whether no site works with the server: then parts that overlap tell nobody anything, and a spoiler
            among few sites is found by leaving out each in turn.
    """
    found, attempts = SoundSums(), 0

    def sums(part: Sequence[str]) -> GroupSum:
        nonlocal attempts
        left, said = list(part), GroupSum(None)
        # each blamed site takes one attempt; who lies in turns does not hold up the others for ever
        for _ in range(MOST_ATTEMPTS):
            said = ask(left, attempts)
            attempts += 1
            if said.totals is not None or not said.blamed or len(left) - len(said.blamed) < fewest:
                break
            left = [name for name in left if name not in said.blamed]
        return said

    def search(part: Sequence[str]) -> None:
        said = sums(part)
        if said.totals is not None:
            found.good.append(said)
        elif said.spoiled:
            inside = sorted(said.replies)
            ring = sorted(inside, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
            half = len(ring) // 2
            if half >= fewest:
                search(sorted(ring[:half]))
                search(sorted(ring[half:]))
            elif trusting and len(inside) > fewest:
                without_one(inside)
            else:
                found.bad.append(tuple(inside))

    def without_one(inside: Sequence[str]) -> None:
        for name in inside:
            said = sums([other for other in inside if other != name])
            if said.totals is not None:
                found.good.append(said)
                found.bad.append((name,))
                return
        found.bad.append(tuple(inside))

    search(names)
    return found


# Sums of one part of the sites, each without those that spoiled the one before.
MOST_ATTEMPTS = 4
