"""How does a run go, from the first greeting to the report?"""

from __future__ import annotations

import logging
import math
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import wire
from common.checkpoint import (
    Checkpoint,
    checkpoint_path,
    drop_checkpoints,
    load_checkpoint,
    prune_checkpoints,
    resumed_file,
    save_checkpoint,
)
from common.errors import UserError
from common.evaluation.score import Score
from common.records import RoundRecord
from common.settings.schema import RunConfig
from common.system.atomic import DISK_ERRORS
from common.system.device import set_deterministic
from server.adaptation.pretrain_snapshot import drop_snapshot, migrate_pretraining, stopped_pretraining
from server.loop.secure_rounds import add_account, polish_totals, train_totals
from server.loop.strategy import Gathered, SegmentationStrategy
from server.preflight.clusters import check_resumable
from server.privacy.accountant import migrate_releases, spent
from server.run_dir import (
    append_metrics,
    prepare_run_dir,
    rewind,
    sole_writer,
    start_logging,
    stop_logging,
)
from server.states.unsupervised import own_groups
from server.tasks.base import Scorer
from server.tasks.registry import scorer_for, work_for
from server.tasks.unsupervised import UnsupervisedWork
from server.tasks.unsupervised_merge import lloyd_pass, own_lloyd_pass
from server.transport.link import Link
from server.transport.registry import Registry
from server.transport.reply_checks import ReplySchema, sanitize

if TYPE_CHECKING:
    from flwr.serverapp import Grid

log = logging.getLogger(__name__)

MAX_LOST_ROUNDS = 3


@dataclass
class Run:
    """Everything that one run needs at hand."""

    config: RunConfig
    run_dir: Path
    link: Link
    registry: Registry
    strategy: SegmentationStrategy
    scorer: Scorer
    first_round: int
    started: float = field(default_factory=time.monotonic)

    @property
    def state(self) -> Any:
        """The model as it is now."""
        return self.strategy.state

    def ask(self, names: list[str], action: str, expectation: ReplySchema) -> dict[str, wire.Update]:
        """Send one action outside of a round and return the checked answers by name."""
        messages = self.strategy.address(names, action, 0)
        replies = self.link.exchange(messages, self.config.sites.deadline_seconds)
        return self.strategy.gather(replies, expectation).updates


def run(grid: Grid, config: RunConfig) -> Path:
    """Run a whole federation over ``grid`` and return the run directory.

    Raises `UserError` where a setting, a checkpoint or the sites make a run impossible. A site that dies,
    hangs, raises or sends nonsense costs the round that site and nothing else.
    """
    set_deterministic(config.deterministic)
    stopped = stopped_pretraining(config)
    checkpoint = load_checkpoint(config.resume) if config.resume and stopped is None else None
    resumed_from = resumed_file(config.resume, checkpoint) if checkpoint else stopped
    run_dir = prepare_run_dir(config, resumed_from)
    with sole_writer(run_dir):
        handlers = start_logging(run_dir)
        try:
            run_in(run_dir, grid, config, checkpoint, resumed_from)
        except UserError as error:
            log.error("the run ends: %s", error)
            raise
        except OSError as error:
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
    if checkpoint is None and config.task == "adaptation":
        from server.preflight.networks import check_start

        check_start(config, run_dir, resumed_from)
        if resumed_from is not None:
            migrate_pretraining(resumed_from, run_dir)
    current = prepare(grid, config, run_dir, checkpoint)
    if checkpoint is None:
        strategy, names = current.strategy, sorted(current.registry.sites)
        strategy.state = strategy.work.prepare(strategy.state, current.ask, names, run_dir)
    if config.rounds == 0:
        finish_preparation(current)
    train_rounds(current)
    from server.report.page import write_report

    report = write_report(run_dir)
    log.info("report: %s", report)


def prepare(grid: Grid, config: RunConfig, run_dir: Path, checkpoint: Checkpoint | None) -> Run:
    """Open the evaluation shard, greet the sites, and make or load the model."""
    scorer = scorer_for(config)
    work = work_for(config, scorer.classes)
    run_key = checkpoint.run_key if checkpoint else f"{config.name}-seed{config.seed}-{uuid.uuid4().hex[:8]}"
    link = Link(grid)
    registry = Registry(config, run_key, scorer.weights_hash, work.greeting())
    wanted = config.sites.expected or config.sites.minimum
    link.wait_for_nodes(
        wanted, config.sites.wait_seconds, lambda n: log.info("%d of %d sites are connected", n, wanted)
    )
    registry.refresh(link, 0, log.info)
    if len(registry.sites) < config.sites.minimum:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in sorted(registry.refused.items()))
        raise UserError(
            f"{len(registry.sites)} usable site(s) after {config.sites.wait_seconds:.0f} s, "
            f"{config.sites.minimum} needed ({reasons or 'none connected'}); start the sites or lower sites.minimum."
        )
    info = next(iter(registry.sites.values()))
    if checkpoint is not None:
        check_resumable(checkpoint, config, info.channels, info.weights_hash)
        state = work.restore(checkpoint)  # may refuse it: nothing is dropped or overwritten before
        drop_checkpoints(run_dir, checkpoint.round)
        rewind(run_dir, checkpoint)
        log.info("going on after round %d of %s", checkpoint.round, run_key)
    else:
        state = work.initial(info.channels)
    (run_dir / "config.json").write_text(config.to_json(), encoding="utf-8")
    classes = 0 if scorer.classes is None else scorer.classes.num_classes
    spool = None if config.task == "unsupervised" else run_dir  # networks are large
    strategy = SegmentationStrategy(config, registry, work, state, run_key, classes, spool)
    strategy.summary()
    images = sum(site.images for site in registry.sites.values())
    log.info("%d sites with %d images: %s", len(registry.sites), images, ", ".join(sorted(registry.sites)))
    return Run(config, run_dir, link, registry, strategy, scorer, 1 + (checkpoint.round if checkpoint else 0))


def train_rounds(current: Run) -> None:
    """Train until the last round; every round ends with a checkpoint and a line of metrics."""
    config, strategy = current.config, current.strategy
    lost = 0
    for number in range(current.first_round, config.rounds + 1):
        began = time.monotonic()
        names = connected(current, number)
        strategy.state = strategy.work.begin(strategy.state, number, current.ask, names)
        counted = train_round(current, number)
        gathered = strategy.gathered
        lost = 0 if counted else lost + 1
        if lost == MAX_LOST_ROUNDS:
            raise UserError(
                f"{lost} rounds in a row had fewer than {config.sites.minimum} usable replies; see log.txt for the "
                f"reasons, then go on with resume={current.run_dir}."
            )
        last = number == config.rounds
        if last and counted and isinstance(strategy.work, UnsupervisedWork):
            polish(current, strategy.work, number, gathered)
        due = last or (config.eval.every > 0 and number % config.eval.every == 0)
        score = score_round(current, number, gathered) if due else Score()
        if last or number == 1:  # before and after
            current.scorer.draw(current.run_dir, number, current.state)
        finish_round(current, number, gathered, score, counted, time.monotonic() - began)


def connected(current: Run, number: int) -> list[str]:
    """Return the sites that are there for a round; wait a while where there are too few for it to count.

    All may be gone at once, and come back: a network that was down, a SuperLink that started again.
    """
    config, link, registry = current.config, current.link, current.registry
    registry.refresh(link, number, log.info, wait=False)
    needed = config.sites.minimum
    if len(registry.sites) < needed:
        log.warning(
            "round %d has %d sites of %d needed; waiting for others up to %.0f s",
            number,
            len(registry.sites),
            needed,
            config.sites.wait_seconds,
        )
    end = time.monotonic() + config.sites.wait_seconds
    while len(registry.sites) < needed and time.monotonic() < end:
        time.sleep(link.poll_seconds)
        registry.refresh(link, number, log.info, wait=False)
    return sorted(registry.sites)


def train_round(current: Run, number: int) -> bool:
    """Ask the sites of a round and merge what they answer; returns whether the round counts."""
    config, strategy = current.config, current.strategy
    if config.privacy.totals_only:
        return train_totals(strategy, current.link, current.run_dir, number)
    messages = list(strategy.configure_train(number, None, None, current.link.grid))  # type: ignore[arg-type]
    replies = current.link.replies(messages, config.sites.deadline_seconds)
    merged, _ = strategy.aggregate_train(number, replies)
    return merged is not None


def polish(current: Run, work: UnsupervisedWork, number: int, gathered: Gathered) -> None:
    """Run exact spherical k-means over all sites for the final head, whatever rule merged the centroids so far:
    sums up, centroids down.
    """
    config, strategy = current.config, current.strategy
    shared = "centroids" not in own_groups(config)
    for index in range(config.centroids.polish_passes):
        if config.privacy.totals_only:
            found = polish_totals(strategy, work, current.link, current.run_dir, number, index)
        else:
            messages = strategy.address(
                sorted(current.registry.sites), wire.SUMS, number, {"what": "clusters"}
            )
            replies = current.link.exchange(messages, config.sites.deadline_seconds)
            found = strategy.gather(replies, work.expect_sums(strategy.state, strategy.weights_hash))
        add_account(gathered, found)
        if not found.updates:
            log.warning("no site answered polish pass %d: the centroids stay as they are", index + 1)
            return
        if shared:
            strategy.state = lloyd_pass(strategy.state, found.updates, config, use_momentum=False)
        else:
            strategy.state = own_lloyd_pass(
                strategy.state, strategy.state, found.updates, config, use_momentum=False
            )


def score_round(current: Run, number: int, gathered: Gathered) -> Score:
    """Score the model where the labelled shard is: at the server, or on the sites."""
    if current.config.eval.where != "sites":
        return current.scorer.score(current.state)
    messages = list(
        current.strategy.configure_evaluate(number, None, None, current.link.grid)  # type: ignore[arg-type]
    )
    replies = current.link.exchange(messages, current.config.sites.deadline_seconds)
    current.strategy.aggregate_evaluate(number, replies)
    found = current.strategy.gathered
    for name, reason in found.quarantined.items():
        gathered.quarantined[name] = sanitize(f"while scoring, {reason}")
    return current.scorer.score_confusions(
        {name: update.groups["confusion"]["confusion"] for name, update in found.updates.items()}
    )


def finish_round(
    current: Run, number: int, gathered: Gathered, score: Score, counted: bool, seconds: float
) -> None:
    """Write checkpoint and metrics, then say in one line how the round went and how long the rest takes."""
    updates = gathered.updates.values()
    images = sum(int(update.facts.get("images", 0)) for update in updates)

    def mean(key: str) -> float | None:
        values = [
            (update.metrics[key], int(update.facts.get("images", 0)))
            for update in updates
            if key in update.metrics
        ]
        return sum(v * n for v, n in values) / images if values and images else None

    known = {key for update in updates for key in update.metrics}
    line = RoundRecord(
        round=number,
        split=current.scorer.split,
        **score.fields(),
        loss=mean("loss"),
        mean_cosine=mean("mean_cosine") if "mean_cosine" in known else score.mean_cosine,
        displacement=mean("displacement"),
        **({"kept": mean("kept")} if "kept" in known else {}),
        sites=sorted(gathered.updates),
        quarantined=gathered.quarantined | current.registry.refused,
        counted=counted,
        bytes_up=gathered.bytes_up,
        bytes_down=gathered.bytes_down,
        seconds=round(seconds, 3),
    )
    epsilon = spent(current.run_dir, current.config.privacy)
    if epsilon is not None:  # JSON knows no infinity: null beside a delta is no bound at all
        line.epsilon = epsilon if math.isfinite(epsilon) else None
        line.delta = current.config.privacy.delta
    line.checkpoint_sha256 = keep_checkpoint(current, number, score, line.to_json())
    append_metrics(current.run_dir, line.to_json())
    prune_checkpoints(current.run_dir, current.config.checkpoint.keep)
    done = number - current.first_round + 1
    left = (time.monotonic() - current.started) / done * (current.config.rounds - number)
    asked = len(gathered.bytes_down)
    words = [f"round {number}/{current.config.rounds}", f"sites {len(gathered.updates)}/{asked}"]
    if line.loss is not None:
        words.append(f"loss {line.loss:.4f}")
    words += score.words()
    if epsilon is not None:
        words.append(f"epsilon {epsilon:.2f} a {current.config.privacy.unit}")
    up = sum(gathered.bytes_up.values()) / max(len(gathered.bytes_up), 1) / 1e6
    words += [f"up {up:.2f} MB a site", f"{seconds:.1f} s", f"left {left:.0f} s"]
    log.info("  ".join(words))


def keep_checkpoint(current: Run, number: int, score: Score, metrics: dict[str, Any]) -> str:
    """Write the checkpoint of a round and return the hash of its arrays."""
    saved = current.strategy.work.saved(current.state)
    info = next(iter(current.registry.sites.values()), None)
    digest = save_checkpoint(
        checkpoint_path(current.run_dir, number),
        Checkpoint(
            round=number,
            head=saved.head,
            centroids=saved.centroids,
            config=current.config,
            classes=current.scorer.classes,
            weights_hash=current.strategy.weights_hash or current.scorer.weights_hash,
            channels=current.scorer.channels or (info.channels if info else 0),
            grid=current.scorer.grid or (info.grid if info else (0, 0)),
            run_key=current.strategy.run_key,
            mapping=score.mapping,
            extra=saved.extra,
            metrics=metrics,
        ),
    )
    if current.config.task == "adaptation":  # its pretrained network lies in the checkpoint from now on
        drop_snapshot(current.run_dir)
    return digest


def finish_preparation(current: Run) -> None:
    """Score and keep what preparation alone gave: round 0."""
    score = score_round(current, 0, Gathered())
    line = RoundRecord(
        round=0,
        split=current.scorer.split,
        **score.fields(),
        loss=None,
        sites=sorted(current.registry.sites),
        quarantined=current.registry.refused,
        bytes_up={},
        bytes_down={},
        seconds=round(time.monotonic() - current.started, 3),
    )
    line.checkpoint_sha256 = keep_checkpoint(current, 0, score, line.to_json())
    append_metrics(current.run_dir, line.to_json())
    current.scorer.draw(current.run_dir, 0, current.state)
    log.info("  ".join(["prepared", *score.words()]))
