"""Which directions does a site propose as first centroids?

A short spherical k-means over the site's own codes gives a few directions and how many patches each stands
for: enough for the server to seed k-means over all sites without seeing a single code (the idea of k-FED,
Dennis, Li and Smith, 2021).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from common.config import RunConfig
from common.feature_source import FeatureSource, tokens_of
from common.kmeans import spherical_kmeans
from common.models.head import SegmentationHead, load_numpy
from common.phases import num_proposals
from common.seeds import derive, torch_generator

SAMPLE = 4096
ITERATIONS = 10


@torch.no_grad()
def propose(
    features: FeatureSource, head: Mapping[str, np.ndarray], config: RunConfig, site: str
) -> dict[str, np.ndarray]:
    """Return unit directions float32 [2K, D] and the patches behind each, int64 [2K], summing to all.

    Proposals that no patch is near have a count of 0. Patches are a seeded sample; the counts are scaled to
    the whole shard.
    """
    model = config.model
    module = SegmentationHead(features.channels, model.dim, model.dropout, model.nonlinear)
    load_numpy(module, head)
    module.eval().to(features.device)
    patches = features.grid[0] * features.grid[1]
    per_image = max(1, -(-SAMPLE // len(features)))
    generator = torch_generator(config.seed, "proposals", site)
    rows = []
    for index in range(len(features)):
        chosen = torch.randperm(patches, generator=generator)[:per_image]
        rows.append(module.project(tokens_of(features, [index])[0, chosen.to(features.device)]).cpu())
    codes = torch.cat(rows).double().numpy()
    wanted = min(num_proposals(model.clusters), len(codes))
    found = spherical_kmeans(
        codes, wanted, derive(config.seed, "proposals", site), restarts=1, iterations=ITERATIONS
    )
    counts = np.bincount(found.labels, minlength=wanted) * (len(features) * patches / len(codes))
    missing = num_proposals(model.clusters) - wanted
    return {
        "directions": np.pad(found.centres, ((0, missing), (0, 0))).astype(np.float32),
        "counts": np.pad(np.rint(counts), (0, missing)).astype(np.int64),
    }
