"""Plans a split: checks a data set's files and divides its images over sites."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.data.check import inspect_shard
from common.data.formats import Reading
from common.data.manifest import REPAIR_SIZES, Entry, Partition, Shard
from common.errors import UserError
from common.system.cli import Progress
from partitions.domains import check_roles
from partitions.rules import by_domain, characteristic_class, check_sites, dirichlet, drawn_view, iid
from partitions.sources.base import ANYWHERE, TRAIN_EVAL, Dataset, all_labelled

Histograms = npt.NDArray[np.int64]
_Result = Histograms | UserError | None  # of one image: counts [C], the fault, or usable but not counted
_NO_DOMAIN = "(none)"  # no folder is called so: images without a domain form a group of their own
_TRAINING = "the training images"


@dataclass(frozen=True)
class Request:
    """What the user asked for, apart from the data set."""

    rule: str
    sites: int | None
    seed: int
    alpha: float
    over: str = "auto"
    keep_labels: bool = True
    decode: bool = True
    skip_unreadable: bool = False


@dataclass(frozen=True)
class Split:
    """The outcome: the images of every site, and labelled pixels per class where labels were read.

    ``histograms`` [C] are those of sites and of evaluation manifests, by name; ``skipped`` are sentences about files.
    """

    dataset: Dataset
    request: Request
    sites: dict[str, list[Entry]]
    histograms: dict[str, Histograms]
    skipped: list[str]

    def entries(self, site: str) -> list[Entry]:
        """Return the manifest lines of a site, with or without labels as requested."""
        chosen = self.sites[site]
        if self.dataset.views:  # whole images were divided, so that crops of one are never at two sites
            views, seed = self.dataset.views, self.request.seed
            chosen = [
                replace(entry, view=drawn_view(seed, entry.image, number) if view == ANYWHERE else view)
                for entry in chosen
                for number, view in enumerate(views)
            ]
        return chosen if self.keeps_labels else [replace(entry, label=None) for entry in chosen]

    def evaluation(self, name: str) -> list[Entry]:
        """Return the lines of an evaluation manifest; those of `TRAIN_EVAL` say which site trains on the image."""
        entries = self.dataset.evaluation[name]
        if name != TRAIN_EVAL:
            return entries
        owner = {entry.image: site for site, images in self.sites.items() for entry in images}
        return [replace(entry, site=owner.get(entry.image)) for entry in entries]

    @property
    def keeps_labels(self) -> bool:
        """Whether label paths stand in the site manifests."""
        return self.request.keep_labels and self.dataset.open_labels

    @property
    def counted(self) -> bool:
        """Whether the classes of the training images were counted."""
        return any(name in self.histograms for name in self.sites)

    def domains(self, site: str) -> dict[str, int]:
        """Return the number of manifest lines per domain of a site, largest first."""
        found = Counter(entry.domain for entry in self.entries(site))
        return {name: count for name, count in found.most_common() if name is not None}

    def partition(self) -> Partition:
        """Return what goes into ``partition.json``."""
        data, request = self.dataset, self.request
        settings: dict[str, object] = {**data.settings, "labels_in_site_manifests": self.keeps_labels}
        if request.rule == "lists":  # which clients of the data set's own lists make up each site
            settings["clients"] = {
                site: ", ".join(dict.fromkeys(data.clients[entry.image] for entry in images))
                for site, images in self.sites.items()
            }
        if request.rule == "dirichlet":
            settings |= {"alpha": request.alpha, "over": request.over}
        return Partition(
            dataset=data.name,
            rule=request.rule,
            seed=request.seed,
            root=data.final_root or data.root,
            sites={site: len(self.entries(site)) for site in self.sites},
            classes=data.classes,
            histogram={site: self.histograms[site].tolist() for site in self.sites} if self.counted else None,
            domains={site: self.domains(site) for site in self.sites},
            evaluation={name: len(entries) for name, entries in data.evaluation.items()},
            settings=settings,
        )


def _decode(
    data: Dataset, groups: Mapping[str, Sequence[Entry]], closed: frozenset[str], progress: Progress | None
) -> dict[str, list[_Result]]:
    """Decode images, and labels where all of a group have them, each once though two groups may hold it.

    The label files in ``closed`` stay unopened, whichever group names them.
    """

    def opened(entries: Sequence[Entry]) -> bool:
        known = all_labelled(entries) and data.classes is not None
        return known and closed.isdisjoint(entry.label for entry in entries if entry.label is not None)

    labelled = {name: opened(entries) for name, entries in groups.items()}
    total = len({entry for entries in groups.values() for entry in entries})
    repair = data.settings.get(REPAIR_SIZES) is True
    results: dict[tuple[Entry, bool], _Result] = {}

    def step(now: int, _: int) -> None:
        if progress is not None:
            progress(len(results) + now, total)

    for labels in (True, False):  # labels are opened only where a whole group has them
        chosen = [entries for name, entries in groups.items() if labelled[name] is labels]
        once = tuple(dict.fromkeys(entry for entries in chosen for entry in entries))
        shard = Shard("", Path(), data.root, once, data.classes, repair, Reading.of(data.settings, data.name))
        found = inspect_shard(shard, labels, progress=step)
        results.update(((entry, labels), result) for entry, result in zip(once, found, strict=True))
    return {name: [results[entry, labelled[name]] for entry in entries] for name, entries in groups.items()}


def _usable(
    data: Dataset, entries: list[Entry], results: Sequence[_Result], skip: bool
) -> tuple[list[Entry], Histograms | None, list[str]]:
    """Return usable entries, their histograms [N, C], sentences about the others."""
    faults = [result for result in results if isinstance(result, UserError)]
    if faults and not skip:
        more = f" ({len(faults) - 1} more files have faults too)" if len(faults) > 1 else ""
        raise UserError(f"{faults[0]}{more}")
    good = [
        entry for entry, result in zip(entries, results, strict=True) if not isinstance(result, UserError)
    ]
    if not good:
        raise UserError(f"No image of {data.root} is usable; the first: {faults[0]}")
    rows = [result for result in results if isinstance(result, np.ndarray)]
    return good, np.stack(rows) if rows else None, [str(fault) for fault in faults]


def _assign(data: Dataset, histograms: Histograms | None, request: Request) -> list[list[int]]:
    images = data.images
    if request.rule == "lists":
        if not data.clients:
            raise UserError(
                f"--by lists needs lists of clients, which {data.name} does not have here; use --by domain or iid."
            )
        return by_domain([data.clients[entry.image] for entry in images], request.sites)
    domains = [entry.domain or _NO_DOMAIN for entry in images]
    named = {entry.domain for entry in images} != {None}
    if request.rule == "domain":
        if not named:
            raise UserError(
                "The images have no domains; say where they come from with --domain-level, --domain-regex or "
                "--domain-csv, or use --by iid."
            )
        return by_domain(domains, request.sites)
    if request.sites is None:
        raise UserError(f"--by {request.rule} needs the number of sites; give --sites N.")
    if request.rule == "iid":
        return iid(len(images), request.sites, request.seed)
    if request.over == "classes":
        if histograms is None:
            raise UserError(
                "--by dirichlet over classes needs a label map per image; use --over domains, or "
                "leave --quick and --no-labels out."
            )
        groups: list[int | str] = [int(c) for c in characteristic_class(histograms)]
    elif named:
        groups = list(domains)
    else:
        raise UserError(
            "--by dirichlet needs labels or domains to skew; give --labels and --classes, or a "
            "--domain-* option."
        )
    return dirichlet(groups, request.sites, request.alpha, request.seed)


def plan(data: Dataset, request: Request, progress: Progress | None = None) -> Split:
    """Check the files of ``data`` and divide them; nothing is written.

    Raises `UserError` for files that cannot be used and for a request that cannot be met.
    """
    check_roles(data)
    if request.sites is not None:
        check_sites(request.sites, len(data.images))
    groups = {_TRAINING: data.images, **data.evaluation}
    counts: dict[str, Histograms] = {}
    skipped: list[str] = []
    if request.decode:
        # what the sites keep to themselves is not looked at here either
        closed = frozenset(entry.label for entry in data.images if entry.label and not request.keep_labels)
        for name, results in _decode(data, groups, closed, progress).items():
            groups[name], counted, faults = _usable(data, groups[name], results, request.skip_unreadable)
            skipped += faults
            if counted is not None:
                counts[name] = counted
    for name, rows in counts.items():
        if data.classes is not None and not rows.any():
            raise UserError(
                f"Every pixel in the label maps of {name} of {data.name} is ignored by the class table "
                f"{data.classes.name!r}; choose the table that they were made for with --classes."
            )
    images, histograms = groups.pop(_TRAINING), counts.pop(_TRAINING, None)
    data = replace(data, images=images, evaluation=groups)
    if request.over == "auto":
        request = replace(request, over="domains" if histograms is None else "classes")
    sites = {f"site-{i}": site for i, site in enumerate(_assign(data, histograms, request))}
    if histograms is not None:
        counts |= {name: histograms[site] for name, site in sites.items()}
    return Split(
        data,
        request,
        {name: [images[i] for i in site] for name, site in sites.items()},
        {name: rows.sum(axis=0) for name, rows in counts.items()},
        list(dict.fromkeys(skipped)),
    )
