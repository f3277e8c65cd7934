"""The command that segments images and lays the results out on a page."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from common.checkpoint import load_checkpoint
from common.data.images import SUFFIXES, read_image
from common.errors import UserError
from common.evaluation.overlay import label_image, legend_entries, overlay, present_ids, with_legend
from common.system.atomic import atomic_path, atomic_write_text
from server.inference.base import Cluster
from server.report.render import render_page
from server.tasks.base import task_of

# Strength of the colors in an overlay, 0 to 1: what lies below still shows.
ALPHA = 0.55


@dataclass(frozen=True)
class ImageJob:
    """An image to segment, and the name of its results (relative, without a suffix)."""

    source: Path
    name: Path


def segment(
    checkpoint: str | Path,
    out: str | Path,
    inputs: Sequence[str | Path],
    *,
    crf: bool = False,
    flip: bool = False,
    cluster: Cluster = "auto",
    site: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Segment images and return the path of the index page.

    Writes ``labels/NAME.png`` (palette image of the image's own size whose values are class ids, or
    cluster numbers where nobody named them), ``overlays/NAME.png`` with a legend, ``legend.json`` (id, name,
    colour) and, last, ``index.html``. Every image is opened before anything is written. The whole of it is
    segmented even where training looked at a part.

    Args:
        checkpoint: a ``round-NNNN.safetensors`` file or a run directory (its newest round).
        out: folder of the results; files of the same name are replaced.
        inputs: images and folders; folders are searched with all their subfolders.
        crf: refine with the dense CRF.
        flip: average codes (of a whole network: probabilities) with those of the mirrored image.
        cluster: which network of a run with style clusters (see `server.inference.base.Cluster`).
        site: whose own model, of a run whose sites do not share all.
        progress: called with (done, total) images.

    Raises:
        UserError: no image found, one that cannot be read, two with the same name, other weights, no such cluster or
            site.
    """
    folder = Path(out)
    jobs = find_pictures(inputs, exclude=folder)
    saved = load_checkpoint(checkpoint)
    for job in jobs:
        read_image(job.source)  # refuses what cannot be read, before anything is written
    predictor = task_of(saved.config).predictor(saved, str(checkpoint), "auto", cluster, site)
    legend = predictor.legend
    used: list[list[int]] = []
    for done, job in enumerate(jobs, start=1):
        image = read_image(job.source)
        ids = legend.apply(predictor.labels(image, flip=flip, crf=crf))
        used.append(present_ids([ids], legend))
        _save(label_image(ids, legend), _result(folder, "labels", job))
        _save(
            with_legend(overlay(image, ids, legend, ALPHA), legend, used[-1]),
            _result(folder, "overlays", job),
        )
        if progress is not None:
            progress(done, len(jobs))
    atomic_write_text(folder / "legend.json", json.dumps(legend.as_json(), indent=2) + "\n")
    index = folder / "index.html"
    words = [
        f"{saved.config.name}, seed {saved.config.seed}, round {saved.round}",
        *([f"the model of {site}"] if site is not None else []),
        f"{len(jobs)} picture" + ("" if len(jobs) == 1 else "s"),
        *(["refined by the CRF"] if crf else []),
        *(["averaged with the mirror image"] if flip else []),
        *predictor.notes(),
    ]
    shown = sorted({index for ids in used for index in ids})
    page = render_page(
        "segment",
        facts=words,
        named=predictor.named,
        legend=legend_entries(legend, shown),
        names=[job.name.as_posix() for job in jobs],
    )
    atomic_write_text(index, page)
    return index


def find_pictures(inputs: Sequence[str | Path], exclude: Path | None = None) -> list[ImageJob]:
    """List the images of files and folders in a fixed order; each gets a name of its own.

    Names keep the path below the given folder. What lies below ``exclude`` (earlier results) is left out.
    """
    jobs: list[ImageJob] = []
    for given in map(Path, inputs):
        if given.is_file():
            jobs.append(ImageJob(given, Path(given.stem)))
        elif given.is_dir():
            found = sorted(
                path for path in given.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()
            )
            found = [path for path in found if exclude is None or not _below(path, exclude)]
            if not found:
                kinds = ", ".join(sorted(SUFFIXES))
                raise UserError(f"Folder {given} holds no picture ({kinds}); give a folder of pictures.")
            jobs += [ImageJob(path, path.relative_to(given).with_suffix("")) for path in found]
        else:
            raise UserError(f"{given} does not exist; give pictures or folders of pictures.")
    if not jobs:
        raise UserError("No picture was given; name pictures or folders of pictures.")
    first: dict[Path, Path] = {}
    for job in jobs:
        if job.name in first:
            raise UserError(
                f"{first[job.name]} and {job.source} would both be written as {job.name}.png; "
                "rename one or segment them into different folders."
            )
        first[job.name] = job.source
    return jobs


def _below(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _result(folder: Path, kind: str, job: ImageJob) -> Path:
    return folder / kind / job.name.parent / f"{job.name.name}.png"


def _save(picture: Image.Image, path: Path) -> None:
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")
