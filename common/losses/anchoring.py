"""Anchors of local training: terms that keep a head from drifting away from the others (FedProx, MOON)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch.nn import functional

from common.losses.base import unit
from common.models.head import SegmentationHead, frozen_copy, load_numpy
from common.settings.unsupervised import Local


def squared_distance(head: SegmentationHead, received: SegmentationHead, parameters: str) -> torch.Tensor:
    """Return ``sum ||w - w_received||^2`` over all parameters, or over those of the non-linear branch (as
    FUSS does).
    """
    terms = [
        (now - then).square().sum()
        for (name, now), then in zip(head.named_parameters(), received.parameters(), strict=True)
        if parameters == "all" or name.startswith("nonlinear.")
    ]
    return torch.stack(terms).sum() if terms else torch.zeros((), device=head.linear.weight.device)


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
    # -log(e^a / (e^a + e^b)) without an exponential that overflows
    return functional.softplus(far - near).mean()


class Anchors:
    """The heads that a local head is compared with: the one received and this site's own of its last round."""

    def __init__(self, head: SegmentationHead, previous: Mapping[str, np.ndarray], local: Local) -> None:
        """Freeze ``head`` as it is now; ``previous`` is empty in a site's first round, which has none to leave."""
        self.local = local
        self.received = frozen_copy(head) if local.prox_mu or local.moon_weight else None
        self.previous: SegmentationHead | None = None
        if local.moon_weight and previous:
            self.previous = frozen_copy(head)
            load_numpy(self.previous, previous)

    def terms(
        self, head: SegmentationHead, tokens: torch.Tensor, codes: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Return the terms that are switched on, weighted; ``codes`` are the head's for ``tokens`` [B, n, C]."""
        found: dict[str, torch.Tensor] = {}
        if self.received is not None and self.local.prox_mu:
            distance = squared_distance(head, self.received, self.local.prox_parameters)
            found["prox"] = self.local.prox_mu / 2 * distance
        if self.received is not None and self.previous is not None:
            with torch.no_grad():
                references = self.received.project(tokens), self.previous.project(tokens)
            term = model_contrastive_term(codes, *references, self.local.moon_temperature)
            found["moon"] = self.local.moon_weight * term
        return found
