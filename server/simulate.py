"""Simulation: a whole federation on one machine, by Flower's engine.

The same ServerApp and ClientApp as in a deployment; Flower starts one worker process per core and hands
them the sites' messages. The call waits for the end and fails where the run failed.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.data.manifest import Shard, pool_shards, read_sites
from common.errors import UserError
from common.features.cache import find_cache, open_features
from common.models.input_size import fitted_to
from common.settings.schema import RunConfig
from common.system.cli import progress_line
from common.system.device import run_in_subprocess
from common.system.stopping import stopping_in_order
from server.aggregation.heads import HEAD_RULES
from server.commands.audit import audit, audit_run, show
from server.report.page import write_report
from server.run_dir import held
from server.settings.first_stage import has_checkpoint
from server.tasks.base import task_of

OBJECT_STORE_BYTES = 512 << 20  # messages are heads and sums; Ray would reserve a third of the memory

# Flower and Ray must neither call home nor listen to the network nor build a private environment for every run
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else it takes the machine's own address where it is given loopback
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
}


def absolute(config: RunConfig) -> RunConfig:
    """Make every path of the settings absolute: workers have another current folder."""

    def path(text: str) -> str:
        return str(Path(text).resolve()) if text else ""

    model = config.model
    # words are no paths
    if model.weights not in ("pretrained", "random"):
        model = model.model_copy(update={"weights": path(model.weights)})
    weights = config.network.weights
    if weights not in ("pretrained", "random"):
        weights = ",".join(path(part.strip()) for part in weights.split(","))
    source = config.source.model_copy(
        update={key: path(getattr(config.source, key)) for key in ("checkpoint", "styles", "data_root")}
    )
    simulation = config.simulation.model_copy(
        update={key: path(getattr(config.simulation, key)) for key in ("shards", "data_root", "cache")}
    )
    return config.model_copy(
        update={
            "model": model,
            "network": config.network.model_copy(update={"weights": weights}),
            "source": source,
            "simulation": simulation,
            "run_dir": path(config.run_dir),
            "resume": path(config.resume),
        }
    )


def with_all_sites(config: RunConfig) -> RunConfig:
    """Expect every site of the shards folder, after reading all manifests: errors show before anything starts."""
    if not config.simulation.shards:
        raise UserError("No shards were given; use --shards DIR (made by `python -m partitions`).")
    # pooled, all shards are one site
    shards = read_sites(config.simulation.shards, config.simulation.data_root or None)
    count = 1 if config.sites.pool else len(shards)
    if config.sites.minimum > count:
        raise UserError(
            f"sites.minimum is {config.sites.minimum} but {config.simulation.shards} holds {count} site(s); lower it."
        )
    if config.sites.per_round > count:
        raise UserError(
            f"sites.per-round is {config.sites.per_round} but {config.simulation.shards} holds {count} site(s); "
            "lower it, or set 0 for all."
        )
    return config.model_copy(update={"sites": config.sites.model_copy(update={"expected": count})})


def load_client_app() -> Any:
    """Return the ClientApp; by name, as the server's code imports nothing of the sites'."""
    return importlib.import_module("client.app").app


def simulate(config: RunConfig, gpus_per_site: float = 0.0) -> Path:
    """Run ``config`` in Flower's simulation, wait, and return the run directory.

    Raises `UserError` for settings, data or checkpoints that cannot be used, and whatever else stopped
    the server application.
    """
    # what the user set wins
    os.environ.update({key: os.environ.get(key, value) for key, value in QUIET.items()})
    config = absolute(config)
    with stopping_in_order(lambda: next_command(config)):
        config = with_all_sites(config)
        check_run(config, gpus_per_site)
        shards = training_shards(config)
        before = audit(None, shards) if config.facts.frozen_backbone else []
        show(before)
        cache_site_features(config, gpus_per_site)
        run_dir = run_in_flower(patient(config, gpus_per_site), gpus_per_site)
        if config.facts.frozen_backbone and config.rounds:
            show(audit_run(run_dir, before, shards))
            write_report(run_dir)  # once more, with the warnings
        return run_dir


def next_command(config: RunConfig) -> str:
    """Return the command that goes on with the run that this process has been stopped in."""
    again = shlex.join(sys.orig_argv)
    if not held:
        return f"stopped before the run began; start it again:\n  {again}"
    run_dir = held[0]
    resumed = config.model_copy(update={"resume": str(run_dir)})
    if not has_checkpoint(run_dir) and task_of(config).unfinished(resumed) is None:
        return f"stopped before the first checkpoint; start again:\n  {again}"
    # of an option that comes twice the last one counts
    return f"stopped; go on:\n  {again} --resume {shlex.quote(str(run_dir))}"


def check_run(config: RunConfig, gpus_per_site: float = 0.0) -> None:
    """Raise `UserError` for the first thing that would stop a simulation; the task makes the run directory last."""
    check_gpus(gpus_per_site)
    shards = training_shards(config)
    check_merge_rule(config, len(shards))
    task_of(config).check_run(config, shards)


def cache_site_features(config: RunConfig, gpus_per_site: float = 0.0) -> None:
    """Make the sites' features before the engine starts: on all cores, with progress, and while no deadline runs."""
    settings = task_of(config).cached(config)
    if settings is None:
        return
    folder = Path(config.simulation.cache or Path(config.simulation.shards) / "cache")
    device = "auto" if gpus_per_site else "cpu"  # as the engine will let sites have it
    missing = [shard for shard in training_shards(config) if not _is_cached(settings, shard, folder, device)]
    if missing:
        run_in_subprocess(_cache_shards, settings, missing, folder, device)  # this process stays small


def _is_cached(settings: RunConfig, shard: Shard, folder: Path, device: str) -> bool:
    fitted = fitted_to(settings, shard)
    return find_cache(shard, fitted.model, fitted.cache, folder, fitted.seed, device) is not None


def _cache_shards(settings: RunConfig, shards: Sequence[Shard], folder: Path, device: str) -> None:
    images, before = sum(len(shard) for shard in shards), 0
    show = progress_line(f"caching features of {len(shards)} site(s)")
    show(0, images)
    for shard in shards:
        fitted = fitted_to(settings, shard)

        def progress(done: int, total: int, before: int = before) -> None:
            show(before + done, images)

        open_features(shard, fitted.model, fitted.cache, folder, device, fitted.seed, progress)
        before += len(shard)


def patient(config: RunConfig, gpus_per_site: float = 0.0) -> RunConfig:
    """Give sites as many deadlines as they wait for turns: simulated ones queue for this machine's cores and GPUs."""
    import torch

    workers = os.cpu_count() or 1
    if gpus_per_site:
        workers = min(workers, max(1, int(torch.cuda.device_count() / gpus_per_site)))
    turns = math.ceil((config.sites.per_round or config.sites.expected) / workers)
    seconds = config.sites.deadline_seconds * max(turns, 1)
    return config.model_copy(update={"sites": config.sites.model_copy(update={"deadline_seconds": seconds})})


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
    settings, taking_part = config.aggregation, config.sites.per_round or sites
    needed = HEAD_RULES.facts(settings.rule).fewest(settings)
    if taking_part < needed:
        raise UserError(
            f"aggregation.rule '{settings.rule}' with aggregation.malicious {settings.malicious} and aggregation.keep "
            f"{settings.keep} needs at least {needed} sites but {taking_part} take part in a round; lower them, or "
            "choose another rule."
        )


def run_in_flower(config: RunConfig, gpus_per_site: float) -> Path:
    """Hand a checked run to Flower's simulation engine and wait; returns the run directory."""
    from flwr.serverapp import ServerApp
    from flwr.simulation import run_simulation

    from server.loop.run import run

    logging.getLogger("flwr").setLevel(logging.ERROR)  # its warnings here are about its own future interface
    server_app = ServerApp()
    finished: list[Path] = []

    @server_app.main()
    def main(grid: Any, context: Any) -> None:
        finished.append(run(grid, config))

    run_simulation(
        server_app=server_app,
        client_app=load_client_app(),
        num_supernodes=config.sites.expected,
        backend_config={
            # one core a site: Ray then starts as many workers as there are cores
            "client_resources": {"num_cpus": 1, "num_gpus": gpus_per_site},
            "init_args": {
                "log_to_driver": False,
                "logging_level": logging.ERROR,
                "_node_ip_address": "127.0.0.1",
                "object_store_memory": OBJECT_STORE_BYTES,
            },
        },
    )
    # the engine may end without an error where the run did not finish
    if not finished:
        raise UserError("The simulation ended before the run did; see the messages above.")
    return finished[0]
