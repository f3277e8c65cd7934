"""Which terms keep a local head from drifting away from the others'? (FedProx, MOON)"""

from __future__ import annotations

import torch
from torch.nn import functional

from common.losses.correspondence import unit
from common.models.head import SegmentationHead


def proximal_term(model: SegmentationHead, received: SegmentationHead, parameters: str) -> torch.Tensor:
    """Return ``sum ||w - w_received||^2`` over all parameters, or over those of the non-linear branch (as
    FUSS does).
    """
    terms = [
        (now - then).square().sum()
        for (name, now), then in zip(model.named_parameters(), received.parameters(), strict=True)
        if parameters == "all" or name.startswith("nonlinear.")
    ]
    return torch.stack(terms).sum() if terms else torch.zeros((), device=model.linear.weight.device)


def model_contrastive_term(
    codes: torch.Tensor, received: torch.Tensor, previous: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Return MOON's loss patch by patch, all three [..., D]: near the received head's code, far from the
    previous one's.

    ``-mean log( e^a / (e^a + e^b) )`` with a, b the cosines to the two references over the temperature. In
    the published FUSS code both references are the same network, so that its gradient vanishes; here they
    are the full received head and this site's own head of its previous round.
    """
    codes = unit(codes)
    near = (codes * unit(received)).sum(-1) / temperature
    far = (codes * unit(previous)).sum(-1) / temperature
    return functional.softplus(far - near).mean()
