"""Any data set whose clients are given by lists, in LEAF JSON or flat."""

from __future__ import annotations

from collections.abc import Container, Iterable
from pathlib import Path, PurePosixPath

from common.data.manifest import Entry
from common.errors import UserError
from common.system.cli import option
from partitions.leaf import Clients, ListedImage, read_clients
from partitions.sources.base import DATASETS, TRAIN_EVAL, Dataset, LoadJob, SourceFacts, all_labelled

_PLACE = "{id}"  # where names go in a pattern


def _fill(pattern: str, name: str, option: str) -> str:
    if _PLACE not in pattern:
        raise UserError(
            f"{option} is {pattern!r}; expected a path below --root with {_PLACE} where names go."
        )
    path = pattern.replace(_PLACE, name.lstrip("/"))  # some published lists start paths with a slash
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise UserError(f"The lists name {name!r}, which leaves --root; expected paths below it.")
    return path


def _entry_of(sample: ListedImage, image: str, label: str | None) -> Entry:
    """Place what a list names below the root.

    ``image`` and ``label`` are patterns with ``{id}``: for ``x``, and for ``y``, or ``x`` again where a list has no
    ``y``. Without ``label`` a ``y`` is the path itself.
    """
    found = None
    if label is not None:
        found = _fill(label, sample.x if sample.y is None else sample.y, "--label-path")
    elif sample.y is not None:
        found = _fill(_PLACE, sample.y, "--label-path")
    return Entry(_fill(image, sample.x, "--image-path"), found, sample.domain)


def place(
    clients: Clients, image: str = _PLACE, label: str | None = None
) -> tuple[list[Entry], dict[str, str]]:
    """Return all images in the order of the lists, and the client of each (by its path); patterns as `_entry_of`."""
    placed = [(_entry_of(x, image, label), client) for client, images in clients.items() for x in images]
    return [entry for entry, _ in placed], {entry.image: client for entry, client in placed}


def train_eval(entries: list[Entry]) -> dict[str, list[Entry]]:
    """Return the manifest of all training images, where every one of them has a label map."""
    return {TRAIN_EVAL: entries} if all_labelled(entries) else {}


def _check_manifest(name: str, earlier: Container[str], file: str) -> None:
    reason = None
    if not name.replace("-", "_").isidentifier() or name.startswith("site-"):
        reason = "which is no name for one"
    elif name == TRAIN_EVAL:
        reason = "which holds the images that sites train on"
    elif name in earlier:
        reason = "which an earlier list of --test makes already"
    if reason is not None:
        raise UserError(f"--test names the manifest {name!r}, {reason}; give another name, as NAME={file}.")


def _tests(given: Iterable[str], image: str, label: str | None) -> dict[str, list[Entry]]:
    result: dict[str, list[Entry]] = {}
    for text in given:
        name, equals, file = text.partition("=")
        clients = read_clients([Path(file if equals else name)])
        joined = {name: [s for samples in clients.values() for s in samples]} if equals else clients
        for manifest, samples in joined.items():
            _check_manifest(manifest, result, file or text)
            result[manifest] = [_entry_of(sample, image, label) for sample in samples]
    return result


_OPTIONS = (
    option(
        "--lists",
        "F...",
        "Training clients: LEAF or flat JSON, text files, folders of JSON.",
        multiple=True,
        required=True,
    ),
    option(
        "--test",
        "NAME=F...",
        "Lists to score on: F becomes NAME.jsonl; without NAME= one a client.",
        multiple=True,
    ),
    option(
        "--image-path",
        "P",
        "Where images lie, {id} being what lists say, as images/{id}.jpg.",
        default=_PLACE,
    ),
    option(
        "--label-path",
        "P",
        "Where label maps lie, {id} being y, or else x (default: y, if there).",
    ),
)


@DATASETS.register(
    "leaf",
    summary="any data set whose clients are given by lists: LEAF JSON, flat JSON {client: [name]}, text",
    facts=SourceFacts(
        "ROOT holds the files that the lists name. Every client becomes a site; train_eval.jsonl holds all their "
        "images where they have labels.",
        "the folder that the lists refer to",
        place=12,
        options=_OPTIONS,
        rule="lists",
    ),
)
def _read(job: LoadJob) -> Dataset:
    args = job.args
    clients = read_clients([Path(name) for name in args.lists])
    images, owner = place(clients, args.image_path, args.label_path)
    evaluation = train_eval(images) | _tests(args.test, args.image_path, args.label_path)
    if args.classes is None and any(entry.label for entry in images):
        raise UserError(
            "The lists name label maps but --classes is not given; name a class table or a JSON file."
        )
    return Dataset(images, evaluation=evaluation, rule="lists", clients=owner)
