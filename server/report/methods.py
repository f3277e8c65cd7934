"""Which runs are seeds of one recipe, and what do they say together?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from common.errors import UserError
from server.report.data import Run
from server.report.test_sets import TestSet, find_sets, last_count


@dataclass(frozen=True)
class Method:
    """The runs of one name; they differ in the seed."""

    name: str
    runs: tuple[Run, ...]

    @property
    def own_models(self) -> bool:
        """Whether each site kept its own model, so that a score is a mean over sites' models."""
        return all(run.final is None and run.scored("site_miou_mean") for run in self.runs)

    def finals(self, key: str) -> list[float]:
        """Values of the last scored round of each seed.

        Where each site keeps its own model, ``miou`` and ``accuracy`` are means over those models.
        """
        source = f"site_{key}_mean" if self.own_models else key
        rows = [run.scored("site_miou_mean" if self.own_models else "miou") for run in self.runs]
        return [float(r[-1][source]) for r in rows if r and isinstance(r[-1].get(source), int | float)]

    def class_iou(self, name: str, test_set: str | None = None, clusters: bool = False) -> list[float]:
        """IoU of one class in the last scored round of each seed, on the first or the named test set.

        Where each site keeps its own model, it is the mean over those models, which see one test set.
        """
        found = self.class_records(test_set, clusters)
        return [float(values[name]) for values in found if values.get(name) is not None]

    def class_records(self, test_set: str | None = None, clusters: bool = False) -> list[Mapping[str, Any]]:
        """Return the IoU by class of the last scored round of each seed (see `class_iou`)."""
        if self.own_models and test_set is None:
            rows = [run.scored("site_miou_mean")[-1] for run in self.runs]
            return [row.get("site_per_class_iou") or {} for row in rows]
        key = "cluster_per_class_iou" if clusters else "per_class_iou"
        return [one.final.get(key) or {} for one in self.sets(test_set)]

    def sets(self, name: str | None = None) -> list[TestSet]:
        """Return one test set, by default the first, of every seed that has it."""
        found = [find_sets(run) for run in self.runs]
        return [
            one for sets in found for one in (sets[:1] if name is None else sets) if name in (None, one.name)
        ]

    def set_names(self) -> list[str]:
        """Return the names of all test sets, in the order of the settings."""
        return list(dict.fromkeys(one.name for run in self.runs for one in find_sets(run)))

    def last_rounds(self, test_set: str, key: str = "miou") -> list[float]:
        """Return each seed's mean over its last scored rounds (``eval.last``)."""
        values = [
            one.last(key, last_count(run))
            for run in self.runs
            for one in find_sets(run)
            if one.name == test_set
        ]
        return [fmean(found) for found in values if found]

    def set_finals(self, test_set: str, key: str = "miou") -> list[float]:
        """Return the value of each seed's last scored round."""
        return [value for one in self.sets(test_set) for value in one.last(key, 1)]

    def mean_bytes(self, key: str) -> float | None:
        """Mean payload per site and round."""
        values = [value for run in self.runs if (value := run.site_bytes(key)) is not None]
        return fmean(values) if values else None

    def mean_curve(self, key: str, test_set: str | None = None) -> list[tuple[float, float]]:
        """Mean over seeds, at the rounds that every seed has; of a test set where one is named."""
        sources = self.runs if test_set is None else self.sets(test_set)
        curves = [dict(source.curve(key)) for source in sources if source.curve(key)]
        if not curves:
            return []
        shared = sorted(set.intersection(*(set(curve) for curve in curves)))
        return [(number, fmean(curve[number] for curve in curves)) for number in shared]


def group(runs: Sequence[Run]) -> list[Method]:
    """Put runs of one name together, best mean mIoU first; a seed that comes twice is an error."""
    named: dict[str, list[Run]] = {}
    for run in runs:
        named.setdefault(run.name, []).append(run)
    for name, members in named.items():
        seeds = [run.seed for run in members]
        twice = {seed for seed in seeds if seeds.count(seed) > 1}
        if twice:
            folders = " and ".join(str(run.folder) for run in members if run.seed in twice)
            raise UserError(
                f"Seed {min(twice)} of '{name}' was given twice ({folders}); "
                "give each run once, or another name."
            )
    methods = [Method(name, tuple(sorted(members, key=lambda r: r.seed))) for name, members in named.items()]
    return sorted(methods, key=lambda m: -fmean(m.finals("miou")) if m.finals("miou") else 1.0)


def all_sets(methods: Sequence[Method]) -> list[str]:
    """Return the names of the test sets of all methods, in the order of the first that has them."""
    return list(dict.fromkeys(name for method in methods for name in method.set_names()))
