"""The command that says, without labels, whether masks follow sites or places rather than content."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.checkpoint import Checkpoint, load_checkpoint
from common.data.manifest import Shard
from common.errors import UserError
from common.evaluation.clusters import check_backbone, code_of, predict
from common.evaluation.site_agreement import Maps, SiteWarning, sample, warn_after, warn_before
from common.features.cache import find_cache, open_features
from common.models.input_size import fitted_to
from common.models.segmenter import Segmenter
from common.models.site_models import unshared
from common.settings.schema import RunConfig
from common.system.atomic import atomic_write_text
from common.system.device import choose_device
from server.run_dir import WARNINGS

# sites that are looked at; more say nothing new
_MOST_SITES = 24


def looked_at(shards: Sequence[Shard]) -> list[Shard]:
    """Return the sites that are looked at, evenly spaced."""
    return [shards[index] for index in sample(len(shards), _MOST_SITES)]


def maps_of_sites(saved: Checkpoint, where: str, shards: Sequence[Shard], *, cached: bool) -> dict[str, Maps]:
    """Return coarse cluster maps uint8 [N, h, w] of a sample of each site's images, on the grid of the features.

    With ``cached`` sites without cached features are passed over, so that no backbone runs.
    Raises `UserError` where the features are not those of the checkpoint.
    """
    maps = {}
    for shard in shards:
        config = fitted_to(saved.config, shard)
        folder = _cache_folder(config, shard)
        if cached and find_cache(shard, config.model, config.cache, folder, config.seed) is None:
            continue
        features = open_features(
            shard, config.model, config.cache, folder, device=choose_device("auto"), seed=config.seed
        )
        check_backbone(saved, features.weights_hash, features.channels, where)
        segmenter = Segmenter.from_checkpoint(saved, model=config.model).to(features.device)
        chosen = sample(len(shard))
        codes = code_of(segmenter, features, chosen)
        maps[shard.name] = np.stack(
            [predict(segmenter, codes[i : i + 1], features.grid) for i in range(len(chosen))]
        )
    return maps


def _cache_folder(config: RunConfig, shard: Shard) -> Path:
    return Path(config.simulation.cache) if config.simulation.cache else shard.path.parent / "cache"


def audit(checkpoint: Path | None, shards: Sequence[Shard], *, cached: bool = False) -> list[SiteWarning]:
    """Judge images of sites before training (no checkpoint), or the masks that a checkpoint gives them.

    Raises `UserError` for a checkpoint that has no clusters on a frozen backbone, or none that sites share.
    """
    if checkpoint is None:
        return warn_before(looked_at(shards))
    saved, where = load_checkpoint(checkpoint), str(checkpoint)
    if not saved.config.facts.frozen_backbone or unshared(saved):
        raise UserError(
            f"{where} has no clusters on a frozen backbone that all sites share, so there is nothing to compare; "
            "leave --checkpoint out to compare the images."
        )
    maps = maps_of_sites(saved, where, looked_at(shards), cached=cached)
    return warn_after(maps, saved.config.model.clusters) if maps else []


def audit_run(run_dir: Path, before: Sequence[SiteWarning], shards: Sequence[Shard]) -> list[SiteWarning]:
    """Judge the masks of a finished simulation and write all warnings to `WARNINGS` in its directory.

    Uses cached features alone. A run that cannot be judged has no warnings of this kind.
    """
    try:
        after = audit(run_dir, shards, cached=True)
    except UserError:
        after = []
    record = {"before": [one.as_json() for one in before], "after": [one.as_json() for one in after]}
    atomic_write_text(run_dir / WARNINGS, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return after


def show(warnings: Sequence[SiteWarning]) -> None:
    """Print warnings for whoever watches."""
    for one in warnings:
        print(f"warning: {one.text}", file=sys.stderr, flush=True)
