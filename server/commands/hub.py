"""Export of a checkpoint to a folder that a model hub can hold: arrays, settings, a card and code that loads it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from common.checkpoint import HUB_ARRAYS, HUB_BACKBONE, Checkpoint, load_checkpoint, save_checkpoint
from common.data.images import Bytes
from common.data.manifest import read_partition
from common.errors import UserError
from common.evaluation.overlay import Legend
from common.models.backbone import backbone_entry, weights_path
from common.models.site_models import chosen_model, refuse_site
from common.settings.schema import RunConfig
from common.system.atomic import atomic_write_text
from server.inference.base import Cluster, Predictor
from server.inference.networks import choose_networks, read_state
from server.tasks.base import task_of

CARD, LOADER, LEGEND = "README.md", "load.py", "legend.json"
# Of a round's record, what says something of the model. Names of sites and sizes of messages stay at home.
PUBLIC_METRICS = ("round", "split", "miou", "accuracy", "per_class_iou", "loss", "epsilon", "delta")
# The side of the image on which the folder is tried before it is handed out.
_TRIAL = (96, 128)

_LOADER = '''"""Segments images with the model in this folder: python load.py IMAGE..."""

import sys
from pathlib import Path

import siteseg

model = siteseg.load(Path(__file__).parent)
for name in sys.argv[1:]:
    mask = model.segment(name)  # uint8 [H, W]; model.names says what each value stands for
    target = Path(name).with_suffix(".mask.png")
    model.label_image(mask).save(target)
    print(target)
'''


def export_hub(
    checkpoint: str | Path, out: str | Path, *, cluster: Cluster = "global", site: str | None = None
) -> Path:
    """Write a folder for a model hub, and return it.

    It holds ``model.safetensors``, ``config.json``, ``legend.json``, ``README.md`` (the card) and ``load.py``. Where
    the backbone's weights were a local file, ``backbone.safetensors`` is a copy. Paths, names of sites and what only a
    resumed run needs are left out. The folder is loaded and tried on an image before this returns.

    Args:
        checkpoint: a ``round-NNNN.safetensors`` file or a run directory (its newest round).
        out: the folder; new or empty.
        cluster: "global" or a number: which network of a run with style clusters.
        site: whose own model, of a run whose sites do not share all.

    Raises:
        UserError: the folder holds something, no such cluster or site, or the backbone's file is gone.
    """
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} holds something already; give --hub a new or an empty folder.")
    saved, where = load_checkpoint(checkpoint), str(checkpoint)
    predictor = task_of(saved.config).predictor(saved, where, "cpu", cluster, site)
    images = _images_of(saved.config)
    files = saved.config.facts.frozen_backbone and saved.config.model.weights not in ("pretrained", "random")
    weights = weights_path(saved.config.model) if files else None
    shared = _public(_alone(saved, where, cluster, site), copied=weights is not None)
    folder.mkdir(parents=True, exist_ok=True)
    if weights is not None:
        shutil.copyfile(weights, folder / HUB_BACKBONE)
    save_checkpoint(folder / HUB_ARRAYS, shared)
    legend = predictor.legend
    atomic_write_text(folder / LEGEND, json.dumps(legend.as_json(), indent=2) + "\n")
    atomic_write_text(folder / LOADER, _LOADER)
    atomic_write_text(folder / CARD, model_card(shared, legend, images, len(saved.metrics.get("sites", []))))
    _try(folder, predictor)
    return folder


def _alone(saved: Checkpoint, where: str, cluster: Cluster, site: str | None) -> Checkpoint:
    """Return a checkpoint that holds the one model and nothing else."""
    if saved.config.facts.frozen_backbone:
        chosen = chosen_model(saved, where, site)
        joined = {key: value for key, value in chosen.extra.items() if key.startswith("joined/")}
        return replace(chosen, extra=joined)
    refuse_site(saved, where, site)
    state = read_state(saved, where)
    choice = choose_networks(state, cluster, where)
    if choice == "nearest":
        raise UserError("--cluster auto was given, but a folder holds one network; give global or a number.")
    model = state.cluster_model(choice if isinstance(choice, int) else None)
    return replace(saved, head=dict(model), extra={})


def _public(saved: Checkpoint, copied: bool) -> Checkpoint:
    """Return a checkpoint without paths of this machine and names of its sites."""
    config = saved.config
    empty: dict[str, Any] = {"shards": "", "data_root": "", "cache": ""}
    source = {"shard": "", "data_root": "", "checkpoint": "", "styles": ""}
    changes: dict[str, Any] = {
        "simulation": config.simulation.model_copy(update=empty),
        "source": config.source.model_copy(update=source),
        "run_dir": "",
        "resume": "",
        "eval": config.eval.model_copy(
            update={"shard": _names(config.eval.shard), "classes": _names(config.eval.classes)}
        ),
    }
    if config.network.weights not in ("pretrained", "random"):
        named = config.network.model_copy(update={"weights": _names(config.network.weights)})
        changes["network"] = named
    if copied:
        changes["model"] = config.model.model_copy(update={"weights": HUB_BACKBONE})
    metrics = {key: saved.metrics[key] for key in PUBLIC_METRICS if saved.metrics.get(key) is not None}
    metrics |= {"split": _names(metrics["split"])} if "split" in metrics else {}
    return replace(saved, config=config.model_copy(update=changes), metrics=metrics, run_key="")


def _names(paths: str) -> str:
    return ",".join(Path(part.strip()).name for part in paths.split(",")) if paths else ""


def _images_of(config: RunConfig) -> tuple[str, int] | None:
    """Return the data set's name and how many images the sites had; None where that is not at hand."""
    try:
        partition = read_partition(config.simulation.shards)
    except (UserError, OSError, ValueError):
        return None
    return partition.dataset, sum(partition.sites.values())


def _try(folder: Path, expected: Predictor) -> None:
    """Load the folder as a stranger would, and compare a mask."""
    saved = load_checkpoint(folder)
    found = task_of(saved.config).predictor(saved, str(folder), "cpu", "global", None)
    noise = np.random.default_rng(0).integers(0, 256, (_TRIAL[0] // 8, _TRIAL[1] // 8, 3), dtype=np.uint8)
    image: Bytes = noise.repeat(8, axis=0).repeat(8, axis=1)
    if not np.array_equal(found.labels(image), expected.labels(image)):
        raise UserError(f"{folder} does not give the masks of the checkpoint; remove it and report a fault.")


def model_card(saved: Checkpoint, legend: Legend, images: tuple[str, int] | None, sites: int) -> str:
    """Return the card as Markdown with the head that hubs read."""
    config, metrics = saved.config, saved.metrics
    data = (
        f"{images[1]} images (data set `{images[0]}`)" if images else "images whose number was not recorded"
    )
    kinds = "\n".join(f"| {number} | {name} |" for number, name in enumerate(legend.names))
    method = config.loss.objective if config.facts.frozen_backbone else config.network.architecture
    return f"""---
library_name: siteseg
pipeline_tag: image-segmentation
license: other
license_name: see-backbone
tags: [federated-learning, image-segmentation]
---
# {config.name}

Segments images into {len(legend.names)} kinds. Trained over many sites whose images stayed where they were.

## Use

```
import siteseg

model = siteseg.load("{config.name}")           # this folder
mask = model.segment("image.jpg")               # uint8 [H, W]
```

`python load.py IMAGE...` writes a mask beside each image. Both need the package `siteseg`, not Flower.

## Values of a mask

| value | name |
|---:|---|
{kinds}

## Training

- Task `{config.task}`, preset `{config.preset}`, `{method}`, seed {config.seed}; {saved.round} rounds.
- {sites or "An unknown number of"} sites took part in the last round; together they hold {data}.
- {_labels(config)}

## Scores

{_scores(metrics)}

## Privacy

{_privacy(config, metrics)}

## Backbone and licenses

{_backbone(config)}
The arrays of this folder were learned from the sites' images; ask those who trained them what they may be used for.
"""


def _labels(config: RunConfig) -> str:
    if config.facts.opens_labels:
        return "Sites trained with labels."
    return "No site opened a label in training; names come from labels that were used for scoring, or from a person."


def _scores(metrics: Mapping[str, Any]) -> str:
    if metrics.get("miou") is None:
        return "This model was not scored."
    rows = [("mIoU", metrics["miou"]), ("accuracy", metrics.get("accuracy"))]
    rows += list((metrics.get("per_class_iou") or {}).items())
    table = "\n".join(f"| {name} | {100 * value:.1f} |" for name, value in rows if value is not None)
    return f"On `{metrics.get('split') or 'labels'}`, in %:\n\n| | |\n|---|---:|\n{table}"


def _privacy(config: RunConfig, metrics: Mapping[str, Any]) -> str:
    summed = (
        "The server saw totals over sites only."
        if config.privacy.secure_sum
        else ("The server saw each site's sums or weights.")
    )
    if metrics.get("epsilon") is not None:
        unit = config.privacy.unit
        return f"{summed} Noise was added: epsilon {metrics['epsilon']:.3g} at delta {metrics['delta']:g}, per {unit}."
    return f"{summed} No noise was added, so there is no bound (epsilon) on what the model tells of an image."


def _backbone(config: RunConfig) -> str:
    if not config.facts.frozen_backbone:
        return (
            f"The whole network (`{config.network.architecture}`) is in this folder. Training started from "
            f"`{config.network.weights}` weights."
        )
    entry = backbone_entry(config.model)
    if config.model.weights == HUB_BACKBONE:
        origin = (
            "its weights, `backbone.safetensors`, were a local file whose license this program does not know"
        )
    elif config.model.weights == "random":
        origin = "its weights are random and follow from the seed"
    else:
        origin = (
            f"its weights come from `{entry.facts.weights_from}`; license and origin: {entry.facts.origin}"
        )
    return f"Frozen `{config.model.backbone}`: {origin}."
