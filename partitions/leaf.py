"""Client lists of other federated systems: reads and writes LEAF JSON, flat JSON and text, exports splits.

LEAF: ``{"users": [id, ...], "num_samples": [n, ...], "user_data": {id: {"x": [path, ...], "y": [...]}}}``, often
cut into several files of a folder. Flat: ``{id: [name, ...]}``. Text: one name a line.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from common.data.manifest import PARTITION_FILE, Entry, read_partition, read_shard, read_sites
from common.errors import UserError, user_error
from common.order import natural_key
from common.system.atomic import atomic_write_text

Form = Literal["leaf", "flat", "text"]


@dataclass(frozen=True)
class ListedImage:
    """An image as a list names it (``x``: a path, in flat lists a bare name), its label map, its domain."""

    x: str
    y: str | None = None
    domain: str | None = None


Clients = dict[str, list[ListedImage]]


def read_names(path: Path, bare: bool = False) -> list[str]:
    """Return the lines of a text list without blank ones.

    Raises `UserError` where there are none, two are equal or, of ``bare`` names, one is a path.
    """
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
    path_like = next((name for name in names if "/" in name or "\\" in name or name.startswith(".")), None)
    if bare and path_like is not None:
        raise UserError(f"The list {path} holds {path_like!r}; expected bare names such as 000000066064.")
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
    owner: dict[str, str] = {}
    for file in files:
        for client, images in _read_file(file).items():
            if client in merged:
                raise UserError(
                    f"The list {file} holds the client {client!r}, which an earlier file holds too; keep one of them."
                )
            merged[client] = images
            for image in images:
                if image.x in owner:
                    raise UserError(
                        f"The lists give the image {image.x!r} to {owner[image.x]} and to {client}; an image "
                        "belongs to one client, once."
                    )
                owner[image.x] = client
    return merged


def _read_file(path: Path) -> Clients:
    if path.suffix == ".txt":
        return {path.stem: [ListedImage(name) for name in read_names(path)]}
    try:
        data = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"The list {path} cannot be read as JSON ({error}); expected LEAF JSON or {{client: [image, ...]}}, so "
            "correct the file, or end a text list in .txt."
        ) from None
    if not isinstance(data, dict) or not data:
        raise UserError(f"The list {path} holds no clients; expected LEAF JSON or {{client: [image, ...]}}.")
    return _parse(data, path)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its pairs; ValueError where a key comes twice, of which JSON would forget the first."""
    found = dict(pairs)
    if len(found) < len(pairs):
        repeated = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {repeated!r} stands in one object twice")
    return found


_Names = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
# whole numbers become the texts that JSON's keys would be
_User = Annotated[str, BeforeValidator(lambda value: str(value) if type(value) is int else value)]


class _Images(BaseModel):
    """What LEAF JSON lists of one client; a text in ``y`` or ``city`` holds for all of its images."""

    model_config = ConfigDict(strict=True)
    x: _Names
    y: _Names | None = None
    city: _Names | None = None

    @model_validator(mode="before")
    @classmethod
    def _spread(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get("x"), list):
            return data
        number = len(data["x"])
        return {key: [value] * number if isinstance(value, str) else value for key, value in data.items()}

    @model_validator(mode="after")
    def _equally_long(self) -> _Images:
        for key, values in (("y", self.y), ("city", self.city)):
            if values is not None and len(values) != len(self.x):
                raise ValueError(f"{len(self.x)} images in 'x' but {len(values)} entries in {key!r}")
        return self


class _Leaf(BaseModel):
    """LEAF JSON; ``num_samples`` is one count per client or their total."""

    model_config = ConfigDict(strict=True)
    users: list[_User]
    user_data: dict[str, _Images]
    num_samples: Annotated[
        list[int] | None, BeforeValidator(lambda value: [value] if type(value) is int else value)
    ] = None


_FLAT = TypeAdapter(dict[str, _Names], config=ConfigDict(strict=True))


def _parse(data: dict[str, Any], path: Path) -> Clients:
    try:
        if "user_data" not in data:
            flat = _FLAT.validate_python(data)
            return {client: [ListedImage(x) for x in names] for client, names in flat.items()}
        leaf = _Leaf.model_validate(data)
    except ValidationError as error:
        remedy = "expected LEAF JSON or {client: [image, ...]}, so correct the list"
        raise user_error(error, f"The list {path}:", remedy) from None
    listed, held = Counter(leaf.users), Counter(leaf.user_data.keys())
    strange = next((name for name in [*leaf.users, *held] if listed[name] != held[name]), None)
    if strange is not None:
        raise UserError(
            f"The list {path} counts {len(leaf.users)} in 'users' and {len(held)} in 'user_data', of them the client "
            f"{strange!r} {listed[strange]} and {held[strange]} times; make both name the same clients, once."
        )
    clients = {}
    for name in leaf.users:
        images = leaf.user_data[name]
        none = [None] * len(images.x)
        rows = zip(images.x, images.y or none, images.city or none, strict=True)
        clients[name] = [ListedImage(*row) for row in rows]
    # the published lists of Mapillary state the right counts in another order than 'users'
    counted = sorted(map(len, clients.values()))
    expected = [sum(counted)] if isinstance(data.get("num_samples"), int) else counted
    if leaf.num_samples is not None and sorted(leaf.num_samples) != expected:
        raise UserError(
            f"The list {path} states num_samples of {sum(leaf.num_samples)} in total for {len(counted)} clients but "
            f"lists {sum(counted)} images, or divides them otherwise; correct the counts or restore the file."
        )
    return clients


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


def export_lists(folder: Path, out: Path, form: Form, manifest: str | None = None) -> str:
    """Write the sites of a folder of shards, or one evaluation manifest, as one list; return a sentence about it.

    ``flat`` and ``text`` lists hold the files' names without folder and ending. Raises `UserError` where the list
    exists, cannot be written, or two images would have one name.
    """
    if out.exists():
        raise UserError(f"--out {out} exists already; give a new file.")
    clients = shards_to_clients(folder, manifest)
    if form != "leaf":
        clients = _bare_names(clients)
    write_clients(out, clients, form)
    return f"{len(clients)} clients, {sum(map(len, clients.values()))} images written to {out}"


def shards_to_clients(folder: Path, manifest: str | None = None) -> Clients:
    """Return the sites of a folder of shards, or one of its evaluation manifests, as clients.

    Sites that came from lists get the names back that they had there. Raises `UserError` where the
    folder or the manifest is none, or holds crops, which no list can name.
    """
    if manifest is not None:
        name = manifest.removesuffix(".jsonl")
        return {name: _samples(read_shard(folder / f"{name}.jsonl").entries, name)}
    names: dict[str, str] = {}
    if (folder / PARTITION_FILE).is_file():
        names = read_partition(folder).settings.get("clients") or {}
    clients: Clients = {}
    for shard in read_sites(folder):
        clients[names.get(shard.name, shard.name)] = _samples(shard.entries, shard.name)
    return clients


def _samples(entries: Sequence[Entry], name: str) -> list[ListedImage]:
    if any(entry.view is not None for entry in entries):
        raise UserError(
            f"{name}.jsonl holds crops of images, which lists of other systems cannot name; make the split "
            "without --crops."
        )
    return [ListedImage(entry.image, entry.label, entry.domain) for entry in entries]


def _bare_names(clients: Clients) -> Clients:
    owner: dict[str, str] = {}
    result: Clients = {}
    for client, samples in clients.items():
        result[client] = []
        for sample in samples:
            name = PurePosixPath(sample.x).stem
            if name in owner:
                raise UserError(
                    f"The images {owner[name]!r} and {sample.x!r} have the same name without folder and ending; "
                    "use --format leaf, which keeps paths."
                )
            owner[name] = sample.x
            result[client].append(replace(sample, x=name))
    return result
