"""What did each test set say over the rounds of a run?

Sets are scored side by side and never mixed. Figures are those of the last scored round and the mean of the last
few: no round is ever chosen by its score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from common.settings.schema import Eval
from common.settings.section import flatten
from server.report.data import Run


@dataclass(frozen=True)
class TestSet:
    """One labelled shard: its record in every scored round, as (round, record)."""

    __test__ = False  # pytest takes it for a test

    name: str
    records: tuple[tuple[float, Mapping[str, Any]], ...]

    @property
    def final(self) -> Mapping[str, Any]:
        """The record of the last scored round."""
        return self.records[-1][1]

    def curve(self, key: str) -> list[tuple[float, float]]:
        """(round, value) wherever a number stands under ``key``."""
        return [(number, float(r[key])) for number, r in self.records if isinstance(r.get(key), int | float)]

    def last(self, key: str, count: int) -> list[float]:
        """Return the values of the last ``count`` scored rounds, fewer where there were fewer."""
        return [value for _, value in self.curve(key)[-count:]]

    @property
    def clustered(self) -> bool:
        """Whether the networks of style clusters were scored beside the shared one."""
        return bool(self.curve("cluster_miou"))


def find_sets(run: Run) -> list[TestSet]:
    """Return the test sets of a run in the order of its settings; a run without ``sets`` has its split alone."""
    found: dict[str, list[tuple[float, Mapping[str, Any]]]] = {}
    for row in run.scored():
        sets = row.get("sets") or {str(row.get("split") or "labels"): row}
        for name, record in sets.items():
            found.setdefault(name, []).append((float(row["round"]), record))
    return [TestSet(name, tuple(records)) for name, records in found.items()]


def last_count(run: Run) -> int:
    """Return over how many last scored rounds a mean is taken (``eval.last``)."""
    given = flatten(run.config).get("eval.last")
    return given if isinstance(given, int) else Eval().last


def mean_and_spread(values: Sequence[float]) -> str:
    """Per cent: ``23.4 ± 1.1`` (sample standard deviation), ``23.4`` for one value, a dash for none."""
    if not values:
        return "–"
    mean = f"{100 * fmean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * stdev(values):.1f}"
