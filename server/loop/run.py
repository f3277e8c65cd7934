"""A whole run, from the first greeting to the report."""

from __future__ import annotations

import logging
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from common.checkpoint import Checkpoint, drop_checkpoints, load_checkpoint, resumed_file
from common.errors import UncountedRounds, UserError
from common.order import natural_items, natural_key
from common.settings.schema import RunConfig
from common.system.atomic import DISK_ERRORS
from common.system.device import set_deterministic
from server.loop.rounds import train_rounds
from server.loop.strategy import SegmentationStrategy
from server.preflight import check_resumable
from server.privacy.accountant import migrate_releases
from server.privacy.totals import warn_of_few_images
from server.report.clusters import collapse
from server.report.data import read_run
from server.report.page import write_report
from server.run_dir import prepare_run_dir, rewind, sole_writer, start_logging, stop_logging
from server.tasks.base import task_of
from server.transport.exchange import Exchange
from server.transport.registry import SiteRegistry
from server.transport.retrying_link import Link

if TYPE_CHECKING:
    from flwr.serverapp import Grid

log = logging.getLogger(__name__)


def run(grid: Grid, config: RunConfig) -> Path:
    """Run a whole federation over ``grid`` and return the run directory.

    Raises `UserError` where a setting, a checkpoint or the sites make a run impossible. A site that dies,
    hangs, raises or sends nonsense costs the round that site and nothing else.
    """
    set_deterministic(config.deterministic)
    # a stopped pretraining has no checkpoint yet, but resume may name it
    unfinished = task_of(config).unfinished(config)
    checkpoint = load_checkpoint(config.resume) if config.resume and unfinished is None else None
    resumed_from = resumed_file(config.resume, checkpoint) if checkpoint else unfinished
    run_dir = prepare_run_dir(config, resumed_from)
    with sole_writer(run_dir):
        stage = task_of(config).first_stage(config, run_dir) if checkpoint is None else None
        if stage is not None:
            with suppress(UncountedRounds):  # it has a model all the same
                run(grid, stage)  # a run of its own in a folder of this one's, by the same sites
        handlers = start_logging(run_dir)
        try:
            run_in(run_dir, grid, config, checkpoint, resumed_from)
        except UserError as error:
            log.error("the run ends: %s", error)
            raise
        except (
            SystemExit,
            KeyboardInterrupt,
        ):  # Flower's processes end so at SIGTERM, SIGINT and `flwr stop`
            log.warning("the run was stopped; go on with resume=%s", run_dir)
            raise
        except OSError as error:
            # anything else is a fault of ours, whose traceback has to be seen
            if error.errno not in DISK_ERRORS:
                log.exception("the run ends")
                raise
            full = UserError(
                f"Cannot write to {run_dir}: {error.strerror}; free some space, then go on with resume={run_dir}."
            )
            log.error("the run ends: %s", full)
            raise full from error
        except Exception:
            log.exception("the run ends")
            raise
        finally:
            stop_logging(handlers)
    return run_dir


def run_in(
    run_dir: Path, grid: Grid, config: RunConfig, checkpoint: Checkpoint | None, resumed_from: Path | None
) -> None:
    """Do everything that a run leaves in its directory."""
    log.info("results go to %s", run_dir)
    if resumed_from is not None:
        migrate_releases(resumed_from.parent.parent, run_dir)
    if checkpoint is None:
        task_of(config).begin_run(config, run_dir, resumed_from)
    strategy = open_run(grid, config, run_dir, checkpoint)
    if checkpoint is None:
        names = sorted(strategy.registry.sites)
        strategy.state = strategy.training.prepare(strategy.state, strategy.ask, names, run_dir)
    strategy.start(grid)
    if collapsed := collapse(read_run(run_dir)):
        log.warning("%s", collapsed)
    log.info("report: %s", write_report(run_dir))
    if strategy.lost:
        rounds = "last round" if strategy.lost == 1 else f"last {strategy.lost} rounds"
        raise UncountedRounds(
            f"The {rounds} of {config.rounds} did not count, so the model is that of before; see log.txt for the "
            f"reasons, mend the sites, and go on with resume={run_dir} and more rounds."
        )


def open_run(
    grid: Grid, config: RunConfig, run_dir: Path, checkpoint: Checkpoint | None
) -> SegmentationStrategy:
    """Open the evaluation shard, greet the sites, and make or load the model."""
    task = task_of(config)
    scorer = task.scorer(config)
    training = task.training(config, scorer.classes)
    run_key = checkpoint.run_key if checkpoint else f"{config.name}-seed{config.seed}-{uuid.uuid4().hex[:8]}"
    link = Link(grid, config.sites.deadline_seconds)
    registry = SiteRegistry(
        config, run_key, scorer.weights_hash, training.greeting(), server_channels=scorer.channels
    )
    wanted = config.sites.expected or config.sites.minimum
    link.wait_for_nodes(
        wanted, config.sites.wait_seconds, lambda n: log.info("%d of %d sites are connected", n, wanted)
    )
    registry.refresh(link, 0, log.info)
    if len(registry.sites) < config.sites.minimum:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in natural_items(registry.refused))
        raise UserError(
            f"{len(registry.sites)} usable site(s) after {config.sites.wait_seconds:.0f} s, "
            f"{config.sites.minimum} needed ({reasons or 'none connected'}); start the sites or lower sites.minimum."
        )
    channels = registry.channels
    if checkpoint is not None:
        check_resumable(checkpoint, config, channels, registry.weights_hash)
        state = training.restore(checkpoint)  # may refuse it: nothing is dropped or overwritten before
        drop_checkpoints(run_dir, checkpoint.round)
        rewind(run_dir, checkpoint)
        log.info("going on after round %d of %s", checkpoint.round, run_key)
    else:
        state = training.initial(channels)
    # last of the preparations: a run that is refused leaves no settings behind
    (run_dir / "config.json").write_text(config.to_json(), encoding="utf-8")
    exchange = Exchange(config, run_key, link, registry, run_dir if training.buffers_replies else None)
    first = 1 + (checkpoint.round if checkpoint else 0)
    strategy = SegmentationStrategy(
        config, run_dir, training, scorer, exchange, state, train_rounds, first_round=first
    )
    strategy.summary()
    images = sum(site.images for site in registry.sites.values())
    names = sorted(registry.sites, key=natural_key)
    log.info("%d sites with %d images: %s", len(registry.sites), images, ", ".join(names))
    warn_of_few_images(config, {name: site.images for name, site in registry.sites.items()})
    return strategy
