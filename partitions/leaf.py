"""Client lists of other federated systems: reads and writes LEAF JSON, flat JSON and text.

LEAF: ``{"users": [id, ...], "num_samples": [n, ...], "user_data": {id: {"x": [path, ...], "y": [...]}}}``, often
cut into several files of a folder. Flat: ``{id: [name, ...]}``. Text: one name a line.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common.data.manifest import natural_key
from common.errors import UserError
from common.system.atomic import atomic_write_text

Form = Literal["leaf", "flat", "text"]


@dataclass(frozen=True)
class ListedImage:
    """An image as a list names it (``x``: a path, in flat lists a bare name), its label map, its domain."""

    x: str
    y: str | None = None
    domain: str | None = None


Clients = dict[str, list[ListedImage]]


def read_names(path: Path) -> list[str]:
    """Return the lines of a text list without blank ones; `UserError` where there are none, or two are equal."""
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"The list {path} cannot be read ({error}); expected one image name per line."
        ) from None
    if not names:
        raise UserError(f"The list {path} names no image; expected one per line.")
    repeated = next((name for name, count in Counter(names).items() if count > 1), None)
    if repeated is not None:
        raise UserError(f"The list {path} names {repeated!r} more than once; keep one of the lines.")
    return names


def read_clients(paths: Sequence[Path]) -> Clients:
    """Read lists of any of the three forms and merge them; of a folder all its ``*.json`` count.

    A text list is one client with the name of the file. Raises `UserError` where a file is none of the
    forms, counts disagree, two files hold the same client, or two clients the same image.
    """
    files: list[Path] = []
    for path in paths:
        found = (
            sorted(path.glob("*.json"), key=lambda file: natural_key(file.name)) if path.is_dir() else [path]
        )
        if not found:
            raise UserError(f"The folder {path} holds no .json; expected the lists of clients there.")
        files += found
    merged: Clients = {}
    for file in files:
        for client, samples in _read_file(file).items():
            if client in merged:
                raise UserError(
                    f"The list {file} holds the client {client!r}, which an earlier file holds too; keep one of them."
                )
            merged[client] = samples
    _check_images(merged)
    return merged


def _check_images(clients: Clients) -> None:
    owner: dict[str, str] = {}
    for client, samples in clients.items():
        for sample in samples:
            if sample.x in owner:
                raise UserError(
                    f"The lists give the image {sample.x!r} to {owner[sample.x]} and to {client}; an image "
                    "belongs to one client, once."
                )
            owner[sample.x] = client


def _read_file(path: Path) -> Clients:
    if path.suffix == ".txt":
        return {path.stem: [ListedImage(name) for name in read_names(path)]}
    try:
        data = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except OSError as error:
        raise UserError(
            f"The list {path} cannot be read ({error.strerror or error}); check its path."
        ) from None
    except ValueError as error:
        raise UserError(
            f"The list {path} cannot be read as JSON ({error}); correct the file, or end a text list in .txt."
        ) from None
    except RecursionError:
        raise UserError(
            f"The list {path} is nested too deeply for a list of clients; expected LEAF JSON or "
            "{client: [image, ...]}, so restore the file."
        ) from None
    if not isinstance(data, dict) or not data:
        raise UserError(f"The list {path} holds no clients; expected LEAF JSON or {{client: [image, ...]}}.")
    return _from_leaf(data, path) if "user_data" in data else _from_flat(data, path)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its pairs; ValueError where a key comes twice, of which JSON would forget the first."""
    found = dict(pairs)
    if len(found) < len(pairs):
        repeated = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {repeated!r} stands in one object twice")
    return found


def _from_flat(data: Mapping[str, Any], path: Path) -> Clients:
    return {
        client: [ListedImage(x) for x in _texts(names, path, client, "images")]
        for client, names in data.items()
    }


def _from_leaf(data: Mapping[str, Any], path: Path) -> Clients:
    users, content = data.get("users"), data["user_data"]
    if not isinstance(content, dict) or not isinstance(users, list):
        raise UserError(
            f"The list {path} is no LEAF JSON; expected a list 'users' and an object 'user_data'."
        )
    names = _user_names(users, path)
    listed, held = Counter(names), Counter([*content])
    strange = next((name for name in [*names, *content] if listed[name] != held[name]), None)
    if strange is not None:
        raise UserError(
            f"The list {path} counts {len(names)} in 'users' {'and' if len(names) == len(content) else 'but'} "
            f"{len(content)} in 'user_data', of them the client {strange!r} {listed[strange]} and {held[strange]} "
            "times; make both name the same clients, once."
        )
    clients = {name: _samples(content[name], path, name) for name in names}
    _check_counts(data.get("num_samples"), [len(samples) for samples in clients.values()], path)
    return clients


def _user_names(users: list[Any], path: Path) -> list[str]:
    """Return the users as texts, as keys of JSON are; whole numbers become what their keys would be."""
    strange = [user for user in users if not isinstance(user, str) and not _is_whole(user)]
    if strange:
        raise UserError(
            f"The list {path} holds {_described(strange[0])} in 'users'; expected the names of clients as in "
            "'user_data', so write each as a text."
        )
    return [str(user) for user in users]


def _check_counts(stated: Any, counted: list[int], path: Path) -> None:
    """Compare ``num_samples``, a list or a total, with the images listed.

    The published lists of Mapillary state the right counts in another order than 'users', so order
    does not count.
    """
    if stated is None:
        return
    counts = stated if isinstance(stated, list) else [stated]
    strange = [count for count in counts if not _is_whole(count)]
    if strange:
        raise UserError(
            f"The list {path} states {_described(strange[0])} in num_samples; expected whole numbers, one a client "
            "or their total, so correct the counts."
        )
    if sorted(counts) != (sorted(counted) if isinstance(stated, list) else [sum(counted)]):
        raise UserError(
            f"The list {path} states num_samples of {sum(counts)} in total for {len(counted)} clients but lists "
            f"{sum(counted)} images, or divides them otherwise; correct the counts or restore the file."
        )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _described(value: Any) -> str:
    """Name a JSON value in a sentence: a scalar as the file has it, else its kind, for it may be long."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return json.dumps(value)


def _samples(content: Any, path: Path, client: str) -> list[ListedImage]:
    if not isinstance(content, dict) or "x" not in content:
        raise UserError(f"The list {path} has no 'x' for client {client!r}; expected a list of image paths.")
    images = _texts(content["x"], path, client, "'x'")
    others: dict[str, Sequence[str | None]] = {}
    for key in ("y", "city"):
        values = content.get(key)
        if isinstance(values, str):
            values = [values] * len(images)
        others[key] = [None] * len(images) if values is None else _texts(values, path, client, repr(key))
        if len(others[key]) != len(images):
            raise UserError(
                f"The list {path} gives client {client!r} {len(images)} images in 'x' but {len(others[key])} "
                f"entries in {key!r}; make both equally long."
            )
    return [ListedImage(x, y, city) for x, y, city in zip(images, others["y"], others["city"], strict=True)]


def _texts(values: Any, path: Path, client: str, what: str) -> list[str]:
    if not isinstance(values, list) or not values or not all(isinstance(v, str) and v for v in values):
        raise UserError(f"The list {path}: {what} of client {client!r} is no list of names; correct it.")
    return values


def leaf_json(clients: Clients) -> dict[str, Any]:
    """Return clients as LEAF JSON values; ``y`` only where every image of a client has a label map."""
    content: dict[str, dict[str, list[str]]] = {}
    for client, samples in clients.items():
        content[client] = {"x": [sample.x for sample in samples]}
        for key, values in (("y", [s.y for s in samples]), ("city", [s.domain for s in samples])):
            present = [value for value in values if value is not None]
            if len(present) == len(samples):
                content[client][key] = present
    return {
        "users": list(clients),
        "num_samples": [len(samples) for samples in clients.values()],
        "user_data": content,
    }


def flat_json(clients: Clients) -> dict[str, list[str]]:
    """Return clients as flat JSON values, names alone."""
    return {client: [sample.x for sample in samples] for client, samples in clients.items()}


def write_clients(path: Path, clients: Clients, form: Form) -> None:
    """Write one list file, atomically; as text the names of all clients, one a line."""
    if form == "text":
        text = "".join(f"{sample.x}\n" for samples in clients.values() for sample in samples)
    else:
        data = leaf_json(clients) if form == "leaf" else flat_json(clients)
        text = json.dumps(data, ensure_ascii=False, indent=1) + "\n"
    atomic_write_text(path, text)
