"""What is kept of a round, and said of it: checkpoint, line of metrics, line of log."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

from common.checkpoint import Checkpoint, checkpoint_path, prune_checkpoints, save_checkpoint
from common.evaluation.score import RoundRecord, Score
from server.loop.base import Run
from server.privacy.accountant import spent
from server.run_dir import append_metrics
from server.transport.exchange import Replies

log = logging.getLogger(__name__)


def keep_round(run: Run, number: int, replies: Replies, score: Score, counted: bool, seconds: float) -> None:
    """Write checkpoint and metrics, then say in one line how the round went and how long the rest takes."""
    known = {key for update in replies.updates.values() for key in update.metrics}
    line = RoundRecord(
        round=number,
        split=run.scorer.split,
        **score.fields(),
        loss=replies.mean("loss"),
        mean_cosine=replies.mean("mean_cosine") if "mean_cosine" in known else score.mean_cosine,
        displacement=replies.mean("displacement"),
        **({"kept": replies.mean("kept")} if "kept" in known else {}),
        sites=sorted(replies.updates),
        quarantined=replies.quarantined | run.registry.refused,
        counted=counted,
        bytes_up=replies.bytes_up,
        bytes_down=replies.bytes_down,
        seconds=round(seconds, 3),
    )
    epsilon = spent(run.run_dir, run.config.privacy)
    if epsilon is not None:  # JSON knows no infinity: null beside a delta is no bound at all
        line.epsilon = epsilon if math.isfinite(epsilon) else None
        line.delta = run.config.privacy.delta
    line.checkpoint_sha256 = keep_checkpoint(run, number, score, line.to_json())
    append_metrics(run.run_dir, line.to_json())
    prune_checkpoints(run.run_dir, run.config.checkpoint.keep)
    log.info("  ".join(_sentence(run, line, replies, score, epsilon)))


def _sentence(
    run: Run, line: RoundRecord, replies: Replies, score: Score, epsilon: float | None
) -> list[str]:
    done = line.round - run.first_round + 1
    left = (time.monotonic() - run.started) / done * (run.config.rounds - line.round)
    words = [f"round {line.round}/{run.config.rounds}", f"sites {len(line.sites)}/{len(replies.bytes_down)}"]
    if line.loss is not None:
        words.append(f"loss {line.loss:.4f}")
    words += score.progress()
    if epsilon is not None:
        words.append(f"epsilon {epsilon:.2f} a {run.config.privacy.unit}")
    up = sum(replies.bytes_up.values()) / max(len(replies.bytes_up), 1) / 1e6
    return [*words, f"up {up:.2f} MB a site", f"{line.seconds:.1f} s", f"left {left:.0f} s"]


def keep_preparation(run: Run, score: Score) -> None:
    """Keep what preparation alone gave: round 0."""
    line = RoundRecord(
        round=0,
        split=run.scorer.split,
        **score.fields(),
        loss=None,
        sites=sorted(run.registry.sites),
        quarantined=run.registry.refused,
        bytes_up={},
        bytes_down={},
        seconds=round(time.monotonic() - run.started, 3),
    )
    line.checkpoint_sha256 = keep_checkpoint(run, 0, score, line.to_json())
    append_metrics(run.run_dir, line.to_json())
    run.scorer.draw(run.run_dir, 0, run.state)
    log.info("  ".join(["prepared", *score.progress()]))


def keep_checkpoint(run: Run, number: int, score: Score, metrics: dict[str, Any]) -> str:
    """Write the checkpoint of a round and return the hash of its arrays."""
    saved = run.training.saved(run.state)
    info = next(iter(run.registry.sites.values()), None)
    digest = save_checkpoint(
        checkpoint_path(run.run_dir, number),
        Checkpoint(
            round=number,
            head=saved.head,
            centroids=saved.centroids,
            config=run.config,
            classes=run.scorer.classes,
            weights_hash=run.registry.weights_hash or run.scorer.weights_hash,
            channels=run.scorer.channels or (info.channels if info else 0),
            grid=run.scorer.grid or (info.grid if info else (0, 0)),
            run_key=run.exchange.run_key,
            mapping=score.mapping,
            extra=saved.extra,
            metrics=metrics,
        ),
    )
    run.training.checkpointed(run.run_dir)
    return digest
