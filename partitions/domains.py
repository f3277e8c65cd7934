"""Which domain (camera, place, drive) is an image from, if the user says so?"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from common.data.manifest import Entry
from common.errors import UserError

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

    A row belongs to an image by its column image, path, file, filename or name, which holds the
    relative path, the file name or the name without its ending. A name that fits rows with
    different domains is refused.
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
