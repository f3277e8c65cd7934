"""Export of a folder of shards as client lists that other federated systems read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from common.data.manifest import PARTITION_FILE, Entry, read_partition, read_shard, read_sites
from common.errors import UserError
from partitions.leaf import Clients, Form, ListedImage, write_clients


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
    folder or the manifest is none, or holds views, which no list can name.
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
            f"{name}.jsonl holds views of images, which lists of other systems cannot name; make the split "
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
