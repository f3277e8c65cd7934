"""Domains of images (camera, place, drive): how the user names them, and which role each has in adaptation.

Adaptation starts from labelled images of some domains and goes on at sites of others that have none. A data set whose
domains are known serves for both. Some become the source at the server, others lose their labels and become sites,
others are kept for scoring.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from common.data.manifest import Entry
from common.errors import UserError
from common.system.cli import need_name
from partitions.sources.base import SAME, SOURCE, TRAIN_EVAL, Dataset, all_labelled

# the labelled manifest of the domains of --score
TARGET = "target"
# which domains become what, by option: --sites-of, --source and --score
Roles = dict[str, list[str]]
# names that published lists use, likeliest first
_KEY_COLUMNS = ("image", "path", "file", "filename", "name")


def from_regex(entries: Sequence[Entry], pattern: str) -> list[Entry]:
    """Take the first group (or the whole match) of ``pattern`` in the relative path as the domain."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(
            f"--domain-regex {pattern!r} is no regular expression ({error}); correct it."
        ) from None
    result = []
    for entry in entries:
        match = compiled.search(entry.image)
        text = match and (match.group(1) if compiled.groups else match.group(0))
        if not text:
            raise UserError(
                f"--domain-regex {pattern!r} finds no domain in {entry.image!r}; it has to match every path, "
                "its first group is the domain."
            )
        result.append(replace(entry, domain=text))
    return result


def from_level(entries: Sequence[Entry], level: int) -> list[Entry]:
    """Take the ``level``-th folder of the relative path (1: the topmost) as the domain."""
    result = []
    for entry in entries:
        folders = PurePosixPath(entry.image).parts[:-1]
        if not 1 <= level <= len(folders):
            raise UserError(
                f"--domain-level is {level} but {entry.image!r} lies {len(folders)} folders deep; expected 1 "
                f"(topmost) to {max(len(folders), 1)}."
            )
        result.append(replace(entry, domain=folders[level - 1]))
    return result


def from_csv(entries: Sequence[Entry], path: Path, column: str) -> list[Entry]:
    """Take the domain from ``column`` of a CSV file with a header.

    A row belongs to an image by its column image, path, file, filename or name. That column holds the relative
    path, the file name or the name without its ending. A name that fits rows with different domains is refused.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines)
            header = list(reader.fieldnames or [])
            rows = list(reader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--domain-csv {path} cannot be read ({error}); expected a CSV with a header."
        ) from None
    if column not in header:
        raise UserError(f"--domain-column {column!r} is not in {path}; expected one of {', '.join(header)}.")
    key = next((name for name in _KEY_COLUMNS if name in header), None)
    if key is None:
        raise UserError(
            f"{path} has no column that names the image; expected one of {', '.join(_KEY_COLUMNS)}."
        )
    known: dict[str, set[str]] = {}
    for row in rows:
        if row[key] and row[column]:
            known.setdefault(row[key], set()).add(row[column])
    result = []
    for entry in entries:
        inside = PurePosixPath(entry.image)
        name = next((n for n in (entry.image, inside.name, inside.stem) if n in known), None)
        if name is None:
            raise UserError(
                f"{path} has no row for the image {entry.image!r} in its column {key!r}; add one, with the "
                "relative path, the file name or the bare name."
            )
        if len(known[name]) > 1:
            raise UserError(
                f"{path} gives {name!r} the domains {', '.join(sorted(known[name]))}; keep one of them."
            )
        result.append(replace(entry, domain=next(iter(known[name]))))
    return result


def parse_roles(sites: str | None, source: str | None, score: str | None) -> Roles | None:
    """Read the options ``--sites-of``, ``--source`` and ``--score``, domains separated by commas.

    Returns None where none is given. Raises `UserError` where only some of them are given or a domain stands twice.
    """
    given = {"--sites-of": sites, "--source": source, "--score": score}
    if not any(text is not None for text in given.values()):
        return None
    roles = {
        option: [name.strip() for name in (text or "").split(",") if name.strip()]
        for option, text in given.items()
    }
    if not roles["--sites-of"] or not roles["--source"]:
        raise UserError(
            "--sites-of, --source and --score belong together; give at least --sites-of (domains without labels) "
            "and --source (labelled domains), names separated by commas."
        )
    owner: dict[str, str] = {}
    for option, names in roles.items():
        for name in names:
            if name in owner:
                raise UserError(
                    f"The domain {name!r} is given to {owner[name]} and to {option}; an image has one role, so "
                    "name it once."
                )
            owner[name] = option
    return roles


def adapt(data: Dataset, roles: Roles) -> Dataset:
    """Give the domains of the training images of ``data`` their roles.

    The result's images are those of the sites, in the order in which ``roles`` names their domains, and
    keep no label path in site manifests. Evaluation manifests of the data set stay, of ``ts1`` what is of
    the sites' domains or of none that is known. They are joined by ``source``, ``train_eval`` (the sites' own images,
    labelled) and, with ``--score``, ``target``. Domains without a role are left out. Raises `UserError` for an
    unknown domain, a source or target image without label, and a list of the user's called ``source`` or ``target``.
    """
    members: dict[str, list[Entry]] = {}
    for entry in data.images:
        members.setdefault(entry.domain or "", []).append(entry)
    known = [name for name in members if name]
    if not known:
        raise UserError("--sites-of names domains but the images have none; give a --domain-* option.")
    for option, names in roles.items():
        for name in names:
            need_name(name, known, f"domain for {option}")
    sites, source, target = ([entry for name in names for entry in members[name]] for names in roles.values())
    taken = next((name for name in (SOURCE, TARGET) if name in data.evaluation), None)
    if taken is not None:
        raise UserError(
            f"--test names the manifest {taken!r}, which --source and --score keep for themselves; give another "
            "name, as NAME=F."
        )
    added = {SOURCE: source, TARGET: target}
    for name, entries in added.items():
        bare = next((entry for entry in entries if entry.label is None), None)
        if bare is not None:
            raise UserError(
                f"The image {data.root / bare.image} of {name}.jsonl has no label map; source and target need "
                "labels, so choose labelled domains."
            )
    added[TRAIN_EVAL] = sites if all_labelled(sites) else []
    own = {name: entries for name, entries in data.evaluation.items() if name not in added}
    kept = (None, *roles["--sites-of"])  # a list of the user's may say nothing of domains
    own[SAME] = [entry for entry in own.get(SAME, []) if entry.domain in kept]
    return replace(
        data,
        images=sites,
        clients={entry.image: data.clients[entry.image] for entry in sites if entry.image in data.clients},
        evaluation={name: entries for name, entries in (added | own).items() if entries},
        open_labels=False,
        settings=data.settings
        | {option.strip("-").replace("-", "_"): ",".join(names) for option, names in roles.items()},
    )


def check_roles(data: Dataset) -> None:
    """Refuse an image that has two roles: trained on and scored, or twice in one list.

    A source of adaptation is trained on as well. The manifest `TRAIN_EVAL` is the exception: it is there to be
    the images that sites train on.
    """
    sites = {entry.image for entry in data.images}
    source = {entry.image for entry in data.evaluation.get(SOURCE, [])}
    for name, entries in {"the training images": data.images, **data.evaluation}.items():
        seen: set[str] = set()
        for entry in entries:
            if entry.image in seen:
                raise UserError(
                    f"The image {entry.image!r} of {data.name} stands in {name} more than once; name it once."
                )
            seen.add(entry.image)
        trained = set() if name not in data.evaluation else sites if name == SOURCE else sites | source
        both = sorted(trained & seen) if name != TRAIN_EVAL else []
        if both:
            raise UserError(
                f"The lists train on {both[0]!r} and score it in {name}; an image has one role, so restore the lists."
            )
