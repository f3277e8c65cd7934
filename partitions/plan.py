"""Plans a split: checks a data set's files, divides its images over sites, and writes the result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.data.check import inspect_shard
from common.data.manifest import REPAIR_SIZES, Entry, Partition, Shard, write_manifest, write_partition
from common.errors import UserError
from common.system.progress import Progress
from partitions.domains import check_roles
from partitions.rules import by_domain, characteristic_class, check_sites, dirichlet, iid
from partitions.sources.base import TRAIN_EVAL, Dataset

Histograms = npt.NDArray[np.int64]
_NO_DOMAIN = "(none)"  # no folder is called so: images without a domain form a group of their own


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
    """The outcome: images of every site, and class histograms per image where labels were read.

    Whole images are divided, also where sites train on crops of them: one image is never at two sites.
    """

    dataset: Dataset
    request: Request
    sites: list[list[int]]
    histograms: Histograms | None
    evaluation_histograms: dict[str, Histograms]
    skipped: list[str]

    def names(self) -> list[str]:
        """Return site-0, site-1, ..."""
        return [f"site-{i}" for i in range(len(self.sites))]

    def images(self, site: int) -> list[Entry]:
        """Return the images of a site."""
        return [self.dataset.images[i] for i in self.sites[site]]

    def entries(self, site: int) -> list[Entry]:
        """Return the manifest lines of a site, with or without labels as requested."""
        chosen = self.images(site)
        if self.dataset.views:
            chosen = [replace(entry, view=view) for entry in chosen for view in self.dataset.views]
        return chosen if self.keeps_labels else [replace(entry, label=None) for entry in chosen]

    def evaluation(self, name: str) -> list[Entry]:
        """Return the lines of an evaluation manifest; those of `TRAIN_EVAL` say which site trains on the image."""
        entries = self.dataset.evaluation[name]
        if name != TRAIN_EVAL:
            return entries
        owner = {entry.image: site for i, site in enumerate(self.names()) for entry in self.images(i)}
        return [replace(entry, site=owner.get(entry.image)) for entry in entries]

    @property
    def keeps_labels(self) -> bool:
        """Whether label paths stand in the site manifests."""
        return self.request.keep_labels and self.dataset.open_labels

    def clients(self) -> dict[str, str]:
        """Return which clients of the data set's own lists make up each site."""
        owner = self.dataset.clients
        found = [
            dict.fromkeys(owner[entry.image] for entry in self.images(i)) for i in range(len(self.sites))
        ]
        return {name: ", ".join(clients) for name, clients in zip(self.names(), found, strict=True)}

    def domains(self, site: int) -> dict[str, int]:
        """Return the number of manifest lines per domain of a site, largest first."""
        found = Counter(entry.domain for entry in self.entries(site))
        return {name: count for name, count in found.most_common() if name is not None}

    def partition(self) -> Partition:
        """Return what goes into ``partition.json``."""
        data, request = self.dataset, self.request
        settings: dict[str, object] = {**data.settings, "labels_in_site_manifests": self.keeps_labels}
        if request.rule == "lists":
            settings |= {"clients": self.clients()}
        if request.rule == "dirichlet":
            settings |= {"alpha": request.alpha, "over": request.over}
        return Partition(
            dataset=data.name,
            rule=request.rule,
            seed=request.seed,
            root=data.final_root or data.root,
            sites={name: len(self.entries(i)) for i, name in enumerate(self.names())},
            classes=data.classes,
            histogram=None
            if self.histograms is None
            else {
                name: self.histograms[site].sum(axis=0).tolist()
                for name, site in zip(self.names(), self.sites, strict=True)
            },
            domains={name: self.domains(i) for i, name in enumerate(self.names())},
            evaluation={name: len(entries) for name, entries in data.evaluation.items()},
            settings=settings,
        )


def _labelled(entries: Sequence[Entry]) -> bool:
    return bool(entries) and all(entry.label is not None for entry in entries)


@dataclass
class _Inspector:
    """Decodes images and labels, each once: those of `TRAIN_EVAL` are training images too."""

    data: Dataset
    skip: bool
    progress: Progress | None
    total: int
    seen: dict[tuple[Entry, bool], npt.NDArray[np.int64] | UserError | None] = field(default_factory=dict)

    def inspect(self, entries: list[Entry]) -> tuple[list[Entry], Histograms | None, list[str]]:
        """Return usable entries, their histograms [N, C], sentences about the others."""
        labels = _labelled(entries) and self.data.classes is not None
        self._decode([entry for entry in entries if (entry, labels) not in self.seen], labels)
        found = [self.seen[entry, labels] for entry in entries]
        faults = [result for result in found if isinstance(result, UserError)]
        if faults and not self.skip:
            more = f" ({len(faults) - 1} more files have faults too)" if len(faults) > 1 else ""
            raise UserError(f"{faults[0]}{more}")
        good = [i for i, result in enumerate(found) if not isinstance(result, UserError)]
        if not good:
            raise UserError(f"No image of {self.data.root} is usable; the first: {faults[0]}")
        rows = [result for result in found if isinstance(result, np.ndarray)]
        return [entries[i] for i in good], np.stack(rows) if labels else None, [str(f) for f in faults]

    def _decode(self, entries: list[Entry], labels: bool) -> None:
        data, done = self.data, len(self.seen)
        repair = data.settings.get(REPAIR_SIZES) is True
        shard = Shard("", Path(), data.root, tuple(entries), data.classes, repair)

        def step(now: int, _: int) -> None:
            if self.progress is not None:
                self.progress(done + now, self.total)

        results = inspect_shard(shard, labels, progress=step)
        self.seen.update(((entry, labels), result) for entry, result in zip(entries, results, strict=True))


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
                "leave --quick out."
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


def _check_labelled(counts: Mapping[str, Histograms | None], data: Dataset) -> None:
    """Refuse label maps that have no class at all: another table was meant, or other maps."""
    for name, histograms in counts.items():
        if histograms is not None and data.classes is not None and not histograms.any():
            raise UserError(
                f"Every pixel in the label maps of {name} of {data.name} is ignored by the class table "
                f"{data.classes.name!r}; choose the table that they were made for with --classes."
            )


def plan(data: Dataset, request: Request, progress: Progress | None = None) -> Split:
    """Check the files of ``data`` and divide them; nothing is written.

    Raises `UserError` for files that cannot be used and for a request that cannot be met.
    """
    check_roles(data)
    if request.sites is not None:
        check_sites(request.sites, len(data.images))
    images = data.images
    histograms: Histograms | None = None
    skipped: list[str] = []
    evaluation = dict(data.evaluation)
    evaluated: dict[str, Histograms] = {}
    if request.decode:
        everything = {*images, *(entry for entries in evaluation.values() for entry in entries)}
        inspector = _Inspector(data, request.skip_unreadable, progress, len(everything))
        images, histograms, skipped = inspector.inspect(images)
        for name, entries in evaluation.items():
            evaluation[name], counts, faults = inspector.inspect(entries)
            skipped += faults
            if counts is not None:
                evaluated[name] = counts
        skipped = list(dict.fromkeys(skipped))
    _check_labelled({"the training images": histograms, **evaluated}, data)
    if request.over == "auto":
        request = replace(request, over="domains" if histograms is None else "classes")
    sites = _assign(replace(data, images=images), histograms, request)
    return Split(
        replace(data, images=images, evaluation=evaluation), request, sites, histograms, evaluated, skipped
    )


def _draw(split: Split) -> object:
    """Return the image of the split (PIL)."""
    from partitions.picture import Row, draw_split  # not at import time: matplotlib is slow to load

    data = split.dataset
    classes = data.classes if split.histograms is not None else None
    domains = list(dict.fromkeys(e.domain for e in data.images if e.domain is not None))

    def share(counts: Histograms | None, entries: Sequence[Entry]) -> npt.NDArray[np.float64] | None:
        if classes is not None:
            summed = None if counts is None else counts.sum(axis=0).astype(np.float64)
        else:
            found = Counter(entry.domain for entry in entries)
            summed = (
                np.asarray([found[name] for name in domains], dtype=np.float64) if len(domains) > 1 else None
            )
        return None if summed is None or summed.sum() == 0 else summed / summed.sum()

    def row(name: str, entries: Sequence[Entry], counts: Histograms | None) -> Row:
        found = Counter(entry.domain for entry in entries if entry.domain is not None).most_common()
        note = ", ".join(f"{domain}\u00a0{count}" if len(found) > 1 else domain for domain, count in found)
        return Row(name, len(entries), note, [data.root / e.image for e in entries], share(counts, entries))

    sites = [
        row(name, split.images(i), None if split.histograms is None else split.histograms[split.sites[i]])
        for i, name in enumerate(split.names())
    ]
    evaluation = [
        row(f"{name} (evaluation)", entries, split.evaluation_histograms.get(name))
        for name, entries in data.evaluation.items()
    ]
    request = split.request
    skew = f", alpha {request.alpha:g} over {request.over}" if request.rule == "dirichlet" else ""
    labels = "labels stand in the site manifests" if split.keeps_labels else "site manifests without labels"
    if not _labelled(data.images):
        labels = "no labels"
    views = f", {len(data.views)} views of each" if data.views else ""
    return draw_split(
        title=f"{data.name}: {len(sites)} sites by {request.rule}{skew}",
        subtitle=f"{len(data.images)} images{views}, seed {request.seed}; {labels}",
        sites=sites,
        evaluation=evaluation,
        names=classes.names if classes is not None else domains if len(domains) > 1 else (),
        colours=classes.colours if classes is not None else None,
        mix="classes, % of labelled pixels" if classes is not None else "domains, % of images",
    )


def write(split: Split, folder: Path, final: Path) -> None:
    """Write manifests, ``partition.json`` and ``split.png`` into ``folder``, which will become ``final``."""
    for i, name in enumerate(split.names()):
        write_manifest(folder / f"{name}.jsonl", split.entries(i))
    for name in split.dataset.evaluation:
        write_manifest(folder / f"{name}.jsonl", split.evaluation(name))
    write_partition(folder, split.partition(), final)
    _draw(split).save(folder / "split.png", optimize=True)  # type: ignore[attr-defined]
