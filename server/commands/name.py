"""The command that names clusters: by a page, by a TOML file, or by labelled images."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
from PIL import Image

from common.checkpoint import Checkpoint, checkpoint_file, load_checkpoint
from common.data.classes import ClassTable, load_table
from common.data.images import entry_image
from common.data.manifest import Shard, read_shard, read_sites
from common.errors import UserError
from common.evaluation.site_agreement import sample
from common.models.site_models import unshared
from common.system.atomic import atomic_write_text
from common.system.cli import Progress
from server.inference.base import Predictor
from server.naming import (
    NAMES_FILE,
    apply_names,
    known_names,
    name_by_labels,
    names_text,
    names_toml,
    parse_names,
)
from server.report.names_page import WORKED, ClusterGallery, names_page
from server.tasks.base import task_of

# What a page that a person fills in may send: far more than names of 255 clusters take
_MOST_BYTES = 100_000
PAGE = "names.html"


def checkpoint_with_clusters(run: Path) -> Checkpoint:
    """Load a checkpoint whose clusters may be named; `UserError` for one that has classes, or a model a site."""
    saved = load_checkpoint(run)
    facts = saved.config.facts
    if not (facts.frozen_backbone or facts.from_clusters):
        raise UserError(
            f"{run} was trained with classes, which have their names; there are no clusters to name."
        )
    if unshared(saved):
        raise UserError(
            f"{run} has a model for each site, whose clusters have nothing in common; they stay numbers."
        )
    return saved


def predictor_of(saved: Checkpoint, run: Path) -> Predictor:
    """Return what segments images by the checkpoint."""
    return task_of(saved.config).predictor(saved, str(run), "auto", "auto", None)


def clusters_of(saved: Checkpoint) -> int:
    """Return how many clusters a checkpoint's masks have."""
    return saved.config.model.clusters


def folder_of_run(run: Path) -> Path:
    """Return the directory of a run, or the folder of a checkpoint that lies elsewhere."""
    file = checkpoint_file(run)
    return file.parent.parent if file.parent.name == "checkpoints" else file.parent


def shards_of(saved: Checkpoint, given: Path | None) -> list[Shard]:
    """Return the shards whose images are shown: a folder or a manifest that was given, else those of the run."""
    place = given or (Path(saved.config.simulation.shards) if saved.config.simulation.shards else None)
    if place is None or not place.exists():
        raise UserError(
            f"The images of the run are not at hand ({place or 'it names no shards'}); name a folder of shards, or a "
            "manifest, by --shards."
        )
    root = (saved.config.simulation.data_root or None) if given is None else None
    return read_sites(place, root) if place.is_dir() else [read_shard(place)]


def gallery_of(
    predictor: Predictor,
    clusters: int,
    shards: Sequence[Shard],
    images: int,
    progress: Progress | None = None,
) -> ClusterGallery:
    """Segment a sample of the images, as many of each site, and collect what each cluster shows."""
    gallery = ClusterGallery(clusters)
    each = max(1, images // len(shards))
    chosen = [(shard, index) for shard in shards for index in sample(len(shard), each)]
    for done, (shard, index) in enumerate(chosen, start=1):
        try:
            image = entry_image(shard, index)
        except UserError:
            continue  # a page of the others is worth more than none
        shrink = min(1.0, WORKED / max(image.shape[:2]))
        size = (max(1, round(image.shape[1] * shrink)), max(1, round(image.shape[0] * shrink)))
        small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
        gallery.add(small, predictor.labels(small), shard.name, shard.entries[index].image)
        if progress is not None:
            progress(done, len(chosen))
    return gallery


def write_names_page(
    run: Path, shards: Path | None, images: int, progress: Progress | None = None, save_to: str = ""
) -> Path:
    """Write the page for naming into a run's directory and return its path."""
    saved = checkpoint_with_clusters(run)
    read = shards_of(saved, shards)
    gallery = gallery_of(predictor_of(saved, run), clusters_of(saved), read, images, progress)
    suggestions = next((shard.classes.names for shard in read if shard.classes is not None), ())
    title = f"{saved.config.name}, seed {saved.config.seed}, round {saved.round}"
    page = names_page(gallery, known_names(run, clusters_of(saved)), title, suggestions, save_to)
    path = folder_of_run(run) / PAGE
    atomic_write_text(path, page)
    return path


def use_names_file(run: Path, file: Path) -> str:
    """Take the names of a TOML file; returns what was done."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read ({error}); give the TOML file that the page made.") from None
    return take_names(run, text, str(file))


def take_names(run: Path, text: str, where: str, known: ClassTable | None = None) -> str:
    """Take names as TOML text, renew the report, and return one sentence about it."""
    saved = checkpoint_with_clusters(run)
    names = parse_names(text, clusters_of(saved), where)
    path = apply_names(run, names, known)
    renew_report(run)
    count = sum(map(bool, names))
    return f"{count} of {len(names)} clusters named, {len(set(filter(None, names)))} classes: {path}"


def renew_report(run: Path) -> None:
    """Write the report of a run anew; a checkpoint alone has none."""
    from server.report.page import write_report

    folder = folder_of_run(run)
    if (folder / "metrics.jsonl").is_file():
        write_report(folder)


def name_from_labels(
    run: Path, shard: Path, classes: str | None, data_root: Path | None, progress: Progress | None = None
) -> str:
    """Name and join clusters by labelled images; returns the outcome with an honest score."""
    saved = checkpoint_with_clusters(run)
    labelled = read_shard(shard, data_root, load_table(classes) if classes else None)
    named = name_by_labels(predictor_of(saved, run).labels, labelled, clusters_of(saved), progress)
    path = apply_names(run, named.names, named.classes)
    renew_report(run)
    return f"{names_text(named)}\nwritten to {path}"


def serve_page(run: Path, page: Path, port: int = 0) -> tuple[HTTPServer, str]:
    """Return a server on loopback that shows the page and takes its names, and its address; `serve_forever` runs it.

    The path holds a secret, so that no other page of the browser can write names.
    """
    secret = secrets.token_urlsafe(12)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != f"/{secret}":
                return self.answer(HTTPStatus.NOT_FOUND, "no such page", "text/plain")
            text = page.read_text(encoding="utf-8").replace('target = "";', f'target = "/{secret}";')
            return self.answer(HTTPStatus.OK, text, "text/html")

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            if self.path != f"/{secret}" or not 0 < length <= _MOST_BYTES:
                return self.answer(HTTPStatus.NOT_FOUND, "not taken", "text/plain")
            try:
                said = take_names(run, self.rfile.read(length).decode("utf-8", "replace"), "the page")
            except UserError as error:
                return self.answer(HTTPStatus.BAD_REQUEST, str(error), "text/plain")
            print(said, flush=True)
            return self.answer(HTTPStatus.OK, f"saved: {said}", "text/plain")

        def answer(self, status: HTTPStatus, text: str, kind: str) -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing of single requests."""

    server = HTTPServer(("127.0.0.1", port), Handler)
    return server, f"http://127.0.0.1:{server.server_address[1]}/{secret}"


def write_names_toml(run: Path) -> Path:
    """Write a TOML file with the names so far, to be filled in by hand; one that is there stays."""
    path = folder_of_run(run) / NAMES_FILE
    if not path.exists():
        saved = checkpoint_with_clusters(run)
        atomic_write_text(path, names_toml(known_names(run, clusters_of(saved)), str(run)))
    return path
