"""How does torchvision import beside a torch that was built for another device?

The wheel of torchvision on the default package index is built for CUDA. Beside a CPU build of torch its compiled
operators cannot be loaded, and then the import itself fails, while it describes them. The frozen backbones
use none of them; timm imports torchvision as well. Declaring the operators' signatures is enough.
"""

from __future__ import annotations

from functools import cache

import torch

_DESCRIBED_ON_IMPORT = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


@cache
def prepare_torchvision() -> torch.library.Library | None:
    """Make ``import torchvision`` work; call it before torchvision or timm is imported.

    Returns what holds the declarations (they live as long as it does), or None where none were needed.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
    else:
        return None
    declared = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for signature in _DESCRIBED_ON_IMPORT:
        declared.define(signature)  # type: ignore[no-untyped-call]
    import torchvision  # noqa: F401

    return declared
