"""Methods: runs of one name, which are seeds of one recipe, and what they say together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from common.errors import UserError
from server.report.data import Curve, RunRecord, TestSet, class_shares, rarest, trained_shares
from server.report.render import mean_and_spread

# Head and rows.
Table = tuple[list[str], list[list[str]]]


@dataclass(frozen=True)
class Method:
    """The runs of one name; they differ in the seed."""

    name: str
    runs: tuple[RunRecord, ...]

    @property
    def own_models(self) -> bool:
        """Whether each site kept its own model, so that a score is a mean over sites' models."""
        return all(run.final is None and run.own for run in self.runs)

    @property
    def title(self) -> str:
        """The name, marked where figures are means over sites' own models."""
        return self.name + (" *" if self.own_models else "")

    def finals(self, key: str) -> list[float]:
        """Values of the last scored round of each seed.

        Where each site keeps its own model, ``miou`` and ``accuracy`` are means over those models.
        """
        own = self.own_models
        rows = [run.own if own else run.final for run in self.runs]
        values = [getattr(row, f"site_{key}_mean" if own else key) for row in rows if row is not None]
        return [float(value) for value in values if value is not None]

    def class_iou(self, name: str, test_set: str | None = None, clusters: bool = False) -> list[float]:
        """IoU of one class in the last scored round of each seed, on the first or the named test set.

        Where each site keeps its own model, it is the mean over those models, which see one test set.
        """
        found = self.class_records(test_set, clusters)
        return [float(values[name]) for values in found if values.get(name) is not None]

    def class_records(self, test_set: str | None = None, clusters: bool = False) -> list[Mapping[str, Any]]:
        """Return the IoU by class of the last scored round of each seed (see `class_iou`)."""
        if self.own_models and test_set is None:
            return [run.own.site_per_class_iou for run in self.runs if run.own is not None]
        key = "cluster_per_class_iou" if clusters else "per_class_iou"
        return [getattr(one.final, key) or {} for one in self.sets(test_set)]

    def sets(self, name: str | None = None) -> list[TestSet]:
        """Return one test set, by default the first, of every seed that has it."""
        return [
            one
            for run in self.runs
            for one in (run.sets[:1] if name is None else run.sets)
            if name in (None, one.name)
        ]

    def last_rounds(self, test_set: str, key: str = "miou") -> list[float]:
        """Return each seed's mean over its last scored rounds (``eval.last``)."""
        values = [
            one.last(key, run.last_count) for run in self.runs for one in run.sets if one.name == test_set
        ]
        return [fmean(found) for found in values if found]

    def set_finals(self, test_set: str, key: str = "miou") -> list[float]:
        """Return the value of each seed's last scored round."""
        return [value for one in self.sets(test_set) for value in one.last(key, 1)]

    def mean_bytes(self, key: str) -> float | None:
        """Mean payload per site and round."""
        values = [value for run in self.runs if (value := run.site_bytes(key)) is not None]
        return fmean(values) if values else None

    def mean_curve(self, key: str, test_set: str | None = None) -> Curve:
        """Mean over seeds, at the rounds that every seed has; of a test set where one is named."""
        sources: Sequence[RunRecord | TestSet] = self.runs if test_set is None else self.sets(test_set)
        curves = [dict(curve) for source in sources if (curve := source.curve(key))]
        # a mean over other seeds in every round would jump where one ends
        shared = set.intersection(*map(set, curves)) if curves else ()
        return [(number, fmean(curve[number] for curve in curves)) for number in sorted(shared)]


def group(runs: Sequence[RunRecord]) -> list[Method]:
    """Put runs of one name together, best mean mIoU first; a seed that comes twice is an error."""
    named: dict[str, list[RunRecord]] = {}
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
    # runs without a score come last
    methods = [Method(name, tuple(sorted(members, key=lambda r: r.seed))) for name, members in named.items()]
    return sorted(methods, key=lambda m: -fmean(m.finals("miou")) if m.finals("miou") else 1.0)


def all_sets(methods: Sequence[Method]) -> list[str]:
    """Return the names of the test sets of all methods, in the order of the first that has them."""
    return list(dict.fromkeys(one.name for method in methods for run in method.runs for one in run.sets))


def has_networks(methods: Sequence[Method]) -> bool:
    """Say whether any run trained a whole network."""
    return any(run.is_network for method in methods for run in method.runs)


def has_clusters(methods: Sequence[Method], test_set: str) -> bool:
    """Say whether networks of style clusters were scored on a test set."""
    return any(one.clustered for method in methods for one in method.sets(test_set))


def pixel_shares(method: Method) -> tuple[dict[str, float], dict[str, float]]:
    """Return the share by class of the scored pixels, and of those trained on where they are known."""
    return next(
        ((found, trained_shares(run)) for run in method.runs if (found := class_shares(run))), ({}, {})
    )


def comparable(methods: Sequence[Method]) -> list[Method]:
    """Return the methods that were trained and scored on the very pixels of the first one with any."""
    shares = [pixel_shares(method) for method in methods]
    first = next((one for one in shares if one[0]), None)
    return [method for method, one in zip(methods, shares, strict=True) if one == first]


def rare_table(methods: Sequence[Method]) -> Table | None:
    """Return the mean IoU of the rarest classes, and of the others, by method; None without networks."""
    fits = comparable(methods)
    if not has_networks(methods) or not fits:
        return None
    scored, trained = pixel_shares(fits[0])
    shares = trained or scored
    rare = rarest(shares)
    rows = []
    for method in fits:
        cells = [method.name]
        for names in (rare, [name for name in shares if name not in rare]):
            by_class = [values for name in names if (values := method.class_iou(name))]
            # a seed after the other: the mean over classes, whose spread over seeds is told
            seeds = zip(*by_class, strict=True) if len(set(map(len, by_class))) == 1 else ()
            cells.append(mean_and_spread([fmean(values) for values in seeds]))
        rows.append(cells)
    return ["mean IoU %", f"{len(rare)} rarest classes", "other classes"], rows
