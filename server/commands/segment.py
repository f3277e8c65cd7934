"""The command that segments images and lays the results out on a page."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from common.checkpoint import load_checkpoint
from common.data.formats import AS_FOUND, Reading
from common.data.images import read_image
from common.data.volumes import write_georeferenced
from common.errors import UserError
from common.evaluation.overlay import label_image, legend_entries, overlay, present_ids, with_legend
from common.system.atomic import atomic_path, atomic_write_text
from server.commands.inputs import ImageJob, find_pictures
from server.commands.results import Results, outlined
from server.inference.base import Cluster
from server.report.render import render_page
from server.tasks.base import task_of

# Strength of the colors in an overlay, 0 to 1: what lies below still shows.
ALPHA = 0.55


def segment(
    checkpoint: str | Path,
    out: str | Path,
    inputs: Sequence[str | Path],
    *,
    crf: bool = False,
    flip: bool = False,
    cluster: Cluster = "auto",
    site: str | None = None,
    skip_unreadable: bool = True,
    keep_masks: bool = False,
    reading: Reading = AS_FOUND,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Segment images and return the path of the index page.

    Writes ``labels/NAME.png`` (palette image of the image's own size whose values are class ids, or
    cluster numbers where nobody named them), ``overlays/NAME.png`` with a legend, ``outlines/NAME.png``,
    areas by image and class (``areas.csv``, ``areas.json``), all masks as ``coco.json``, ``legend.json`` (id, name,
    colour) and, last, ``index.html``. The whole of an image is segmented even where training looked at a part.
    Images that cannot be read are named in the page and on stderr.

    Args:
        checkpoint: a ``round-NNNN.safetensors`` file or a run directory (its newest round).
        out: folder of the results; files of the same name are replaced.
        inputs: images and folders; folders are searched with all their subfolders.
        crf: refine with the dense CRF.
        flip: average codes (of a whole network: probabilities) with those of the mirrored image.
        cluster: which network of a run with style clusters (see `server.inference.base.Cluster`).
        site: whose own model, of a run whose sites do not share all.
        skip_unreadable: go on without images that cannot be read; otherwise the first of them ends it, before
            anything is written.
        keep_masks: segment files of the folders that look like masks too.
        reading: window of images of more than 8 bits, and channels of those that have more than three.
        progress: called with (done, total) images.

    Raises:
        UserError: no image found, none that can be read, two with the same name, other weights, no such cluster or
            site.
    """
    folder = Path(out)
    found = find_pictures(inputs, exclude=folder, keep_masks=keep_masks)
    jobs, left_out = found.jobs, list(found.left_out)
    saved = load_checkpoint(checkpoint)
    for job in () if skip_unreadable else jobs:
        read_image(job.source, reading)
    predictor = task_of(saved.config).predictor(saved, str(checkpoint), "auto", cluster, site)
    legend = predictor.legend
    used: list[list[int]] = []
    segmented: list[ImageJob] = []
    results = Results(legend)
    for done, job in enumerate(jobs, start=1):
        if progress is not None:
            progress(done, len(jobs))
        try:
            image = read_image(job.source, reading)
        except UserError as error:
            left_out.append(str(error))
            continue
        segmented.append(job)
        ids = legend.apply(predictor.labels(image, flip=flip, crf=crf))
        used.append(present_ids([ids], legend))
        _save(label_image(ids, legend), _result(folder, "labels", job))
        placed = _result(folder, "labels", job).with_suffix(".tif")
        write_georeferenced(job.source, ids, legend.colours, placed)
        results.add(job.name.as_posix(), job.source.name, ids)
        _save(Image.fromarray(outlined(image, ids, legend)), _result(folder, "outlines", job))
        _save(
            with_legend(overlay(image, ids, legend, ALPHA), legend, used[-1]),
            _result(folder, "overlays", job),
        )
    for sentence in left_out:
        print(f"left out: {sentence}", file=sys.stderr)
    if not segmented:
        raise UserError(f"None of {len(jobs)} pictures can be read; the first: {left_out[-len(jobs)]}")
    atomic_write_text(folder / "legend.json", json.dumps(legend.as_json(), indent=2) + "\n")
    results.write(folder)
    index = folder / "index.html"
    words = [
        f"{saved.config.name}, seed {saved.config.seed}, round {saved.round}",
        *([f"the model of {site}"] if site is not None else []),
        f"{len(segmented)} picture" + ("" if len(segmented) == 1 else "s"),
        *([f"{len(left_out)} files left out"] if left_out else []),
        *([f"{found.masks} masks passed over"] if found.masks else []),
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
        shown=[
            {"id": index, "name": legend.names[index], "pictures": sum(index in ids for ids in used)}
            for index in shown
        ],
        pictures=[
            {"name": job.name.as_posix(), "ids": ids, "areas": results.sentence(job.name.as_posix())}
            for job, ids in zip(segmented, used, strict=True)
        ],
        left_out=left_out,
    )
    atomic_write_text(index, page)
    return index


def _result(folder: Path, kind: str, job: ImageJob) -> Path:
    return folder / kind / job.name.parent / f"{job.name.name}.png"


def _save(picture: Image.Image, path: Path) -> None:
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")
