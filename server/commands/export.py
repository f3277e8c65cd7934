"""ONNX export of a checkpoint, to a file that is kept only where it gives the same outputs as torch."""

from __future__ import annotations

import importlib
import warnings
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

# The oldest that torch's exporter writes without converting.
OPSET = 18


def export_onnx(
    checkpoint: str | Path,
    out: str | Path,
    *,
    cluster: Cluster = "global",
    site: str | None = None,
    size: Size | None = None,
) -> Path:
    """Write the whole model of a checkpoint, from pixels to scores, as one ONNX file and return its path.

    The file is run by ONNX Runtime on random images, one and two at a time, and compared with torch before it
    gets its name; a file that differs is never kept. Its metadata hold input size, names and colors of
    what each cluster or class stands for.

    Args:
        checkpoint: a ``round-NNNN.safetensors`` file or a run directory (its newest round).
        out: the file.
        cluster: "global" or a number: which network of a run with style clusters.
        site: whose own model, of a run whose sites do not share all.
        size: height and width of the images of a whole network, where not as scored.

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
        for key, value in metadata.items():
            described.metadata_props.add(key=key, value=value)
        onnx.checker.check_model(described)
        temporary.write_bytes(described.SerializeToString())
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        for images in (example, example[:1]):
            _compare(model, session, images, target)
    return target


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
