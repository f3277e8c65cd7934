"""Can a run in simulation work at all, asked before anything starts?

Flower's engine takes seconds to start and a run takes minutes: whatever can be wrong with settings, files
and folders is said first, in one sentence. In a deployment every site asks itself (`client.join.check`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.checkpoint import load_checkpoint, resumed_file
from common.data.check import check_labels, check_shard
from common.data.manifest import Shard, pool_shards, read_shard, read_sites
from common.errors import UserError
from common.features.preflight import backbone_needs, check_folder, check_shard_size, find_cache
from common.settings.schema import RunConfig
from common.system.cli import progress_line
from common.system.subprocess import run_apart
from server.evaluation.cluster_scorer import evaluation_shard, known_classes
from server.loop.run import check_resumable
from server.loop.run_dir import prepare_run_dir
from server.settings.applicability import refuse_foreign


def check_run(config: RunConfig, gpus_per_site: float = 0.0) -> None:
    """Raise `UserError` for the first thing that would stop the run; make the run directory last.

    Images are decoded only where no feature cache vouches for them, labels only those that score. The
    backbone is loaded only where features are missing.
    """
    check_gpus(gpus_per_site)
    shards = training_shards(config)
    if config.task != "unsupervised":
        from server.preflight.networks import check_network_run

        check_merge_rule(config, len(shards))
        check_network_run(config, shards)
        return
    refuse_foreign(config)
    for shard in shards:
        check_shard_size(len(shard), shard.name, config)
    check_merge_rule(config, len(shards))
    known_classes(config)
    checkpoint = load_checkpoint(config.resume) if config.resume else None
    resumed_from = None if checkpoint is None else resumed_file(config.resume, checkpoint)
    scored = scored_shards(config, [shard.name for shard in shards])
    channels, weights_hash = check_features(config, [*shards, *scored])
    for shard in scored:
        check_labels(shard, progress_line(f"checking labels of {shard.name}"))
    if checkpoint is not None:
        check_resumable(checkpoint, config, channels, weights_hash)
    prepare_run_dir(config, resumed_from)


def check_gpus(gpus_per_site: float) -> None:
    """Refuse a share of a GPU where torch sees none: Flower would wait for one without end."""
    import torch

    found = torch.cuda.device_count()
    if not 0 <= gpus_per_site <= found:
        raise UserError(
            f"--gpus-per-site is {gpus_per_site:g} but torch sees {found} CUDA devices; "
            + (f"give 0 to {found}." if found else "leave it out to train on the CPU.")
        )


def training_shards(config: RunConfig) -> list[Shard]:
    """Return what each simulated site will train on."""
    shards = read_sites(config.simulation.shards, config.simulation.data_root or None)
    return [pool_shards(shards, "pooled")] if config.sites.pool else shards


def check_merge_rule(config: RunConfig, sites: int) -> None:
    """Refuse settings that the head rule cannot meet with as many sites as take part in a round."""
    rule, taking_part = config.aggregation, config.sites.per_round or sites
    if rule.rule in ("krum", "multi-krum") and taking_part < 2 * rule.malicious + 3:
        raise UserError(
            f"Krum against {rule.malicious} hostile sites needs at least {2 * rule.malicious + 3} sites but "
            f"{taking_part} take part in a round; lower aggregation.malicious or choose another rule."
        )
    if rule.rule == "multi-krum" and rule.keep > taking_part:
        raise UserError(
            f"aggregation.keep is {rule.keep} but {taking_part} sites take part in a round; lower it."
        )


def scored_shards(config: RunConfig, sites: Sequence[str]) -> list[Shard]:
    """Return the labelled shards that the run will be scored on, at the server or on the sites."""
    if config.eval.where == "server":
        shard = evaluation_shard(config)
        return [] if shard is None else [shard]
    if config.eval.where == "none" or not config.eval.shard:
        return []
    folder, root = Path(config.simulation.shards), config.simulation.data_root or None
    found = {folder / config.eval.shard.format(site=site) for site in sites}
    return [read_shard(path, root) for path in sorted(found)]


def check_features(config: RunConfig, shards: Sequence[Shard]) -> tuple[int, str]:
    """Make sure that every shard's features are cached or can be; return channels and weights hash.

    Raises `UserError` for images that cannot be read, weights that do not fit, and a disk that is too full.
    """
    channels, weights_hash = 0, ""
    missing: list[tuple[Shard, Path]] = []
    for shard in shards:
        folder = Path(config.simulation.cache or shard.path.parent / "cache")
        header = find_cache(shard, config.model, config.cache, folder, config.seed)
        if header is None:
            missing.append((shard, folder))
        else:
            channels, weights_hash = header.channels, header.weights_hash
    if missing:
        counts: dict[Path, int] = {}
        for shard, folder in missing:
            counts[folder] = counts.get(folder, 0) + len(shard)
        channels, weights_hash, needed = run_apart(
            backbone_needs, config.model, config.cache, config.seed, list(counts.values())
        )
        for folder, size in zip(counts, needed, strict=True):
            check_folder(folder, size)
    for shard, _ in missing:
        faults = check_shard(shard, labels=False, progress=progress_line(f"checking images of {shard.name}"))
        if faults:
            more = f" ({len(faults) - 1} more images of {shard.name} have faults)" if len(faults) > 1 else ""
            raise UserError(faults[0] + more)
    return channels, weights_hash
