"""ONNX export of a checkpoint, to a file that is kept only where it gives the same outputs as torch."""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.checkpoint import load_checkpoint
from common.errors import UserError
from common.seeds import torch_generator
from common.system.atomic import atomic_path
from server.inference.base import Cluster, Exportable, Size
from server.tasks.base import task_of

# Largest difference that is accepted between ONNX Runtime and torch, in multiples of the largest output, or of 1 where
# that is smaller (cosines).
TOLERANCE = 1e-3

# Smallest share of pixels that must get the same cluster or class.
AGREEMENT = 0.999

# Images on which the two are compared.
CHECKED = 50

# The oldest that torch's exporter writes without converting.
OPSET = 18


def export_onnx(
    checkpoint: str | Path,
    out: str | Path,
    *,
    cluster: Cluster = "global",
    site: str | None = None,
    size: Size | None = None,
    checked: int = CHECKED,
) -> Path:
    """Write the whole model of a checkpoint, from pixels to scores, as one ONNX file and return its path.

    The file is run by ONNX Runtime on drawn images, one and two at a time, and compared with torch before it
    gets its name; a file that differs is never kept. Its metadata hold input size, names and colors of
    what each cluster or class stands for, and under ``names`` a JSON list of the names alone.

    Args:
        checkpoint: a ``round-NNNN.safetensors`` file or a run directory (its newest round).
        out: the file.
        cluster: "global" or a number: which network of a run with style clusters.
        site: whose own model, of a run whose sites do not share all.
        size: height and width of the images of a whole network, where not as scored.
        checked: on how many images both have to agree, at least one.

    Raises:
        UserError: onnx or onnxruntime is not installed, other weights, a size, a cluster or a site that cannot be,
            or the two disagree.
    """
    try:
        import onnx
        import onnxruntime

        importlib.import_module("onnxscript")  # torch's exporter needs it
    except ImportError as error:
        raise UserError(
            f"Export needs the package {error.name}, which is not installed; "
            "install the extra: pip install '.[export]'."
        ) from None
    saved = load_checkpoint(checkpoint)
    predictor = task_of(saved.config).predictor(saved, str(checkpoint), "cpu", cluster, site)
    model, metadata = predictor.export(size)
    target = Path(out)
    # two images, so that the exporter takes no batch size for a constant
    example = torch.rand(2, 3, *model.size, generator=torch_generator(saved.config.seed, "export"))
    with atomic_path(target) as temporary:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's notes on itself are nothing a user could act on
            program = torch.onnx.export(
                model,
                (example,),
                input_names=["images"],
                output_names=[model.output],
                dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}},
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
        assert program is not None
        described = program.model_proto
        for key, value in (metadata | {"names": output_names(metadata)}).items():
            described.metadata_props.add(key=key, value=value)
        onnx.checker.check_model(described)
        temporary.write_bytes(described.SerializeToString())
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        images = drawn_images(checked, model.size, saved.config.seed)
        _compare(model, session, images[:1], target)
        for first in range(1, checked, 2):
            _compare(model, session, images[first : first + 2], target)
    return target


def drawn_images(count: int, size: Size, seed: int) -> Tensor:
    """Return images [count, 3, H, W] in 0..1 of soft shapes and noise: structure at every scale, as photos have it."""
    generator = torch_generator(seed, "export-check")
    images = torch.zeros(count, 3, *size)
    for cells in (2, 5, 13, 34):
        coarse = torch.rand(count, 3, cells, cells, generator=generator)
        images += torch.nn.functional.interpolate(coarse, size, mode="bilinear") / 4
    return (images + 0.1 * torch.rand(images.shape, generator=generator)).clamp(0, 1)


def output_names(metadata: Mapping[str, str]) -> str:
    """Return the names of a model's outputs in their order, as a JSON list."""
    entries = json.loads(metadata.get("clusters") or metadata.get("classes") or "[]")
    return json.dumps([entry["name"] for entry in entries])


@torch.no_grad()
def _compare(model: Exportable, session: Any, images: Tensor, target: Path) -> None:
    """Raise `UserError` where ONNX Runtime and torch do not say the same."""
    expected = model(images).numpy()
    (given,) = session.run([model.output], {"images": images.numpy()})
    difference = float(np.abs(given - expected).max() / max(1.0, float(np.abs(expected).max())))
    same = float((given.argmax(axis=1) == expected.argmax(axis=1)).mean())
    if not (difference <= TOLERANCE and same >= AGREEMENT):
        raise UserError(
            f"The ONNX file does not agree with torch ({model.output} differ by up to {difference:.2g}, "
            f"{100 * same:.2f} % of pixels get the same argmax), so {target} was not written; "
            "try another version of onnxruntime."
        )
