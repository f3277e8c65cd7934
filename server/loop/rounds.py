"""The rounds of a run: each goes from choosing sites to one line of log, in numbered steps."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

from common import wire
from common.checkpoint import Checkpoint, checkpoint_path, prune_checkpoints, save_checkpoint
from common.errors import UserError
from common.evaluation.score import RoundRecord, Score
from common.order import natural_key
from server.loop.strategy import SegmentationStrategy
from server.privacy.accountant import spent
from server.privacy.totals import exchange_totals
from server.run_dir import append_metrics, read_metrics
from server.transport.exchange import Replies
from server.transport.reply_checks import sanitize

log = logging.getLogger(__name__)

# After so many rounds in a row without enough answers a run ends: its sites will hardly come back by themselves.
MAX_LOST_ROUNDS = 3


def train_rounds(run: SegmentationStrategy) -> None:
    """Train until the last round; where there is none, keep what preparation gave."""
    if run.config.rounds == 0:
        keep_preparation(run, score_round(run, 0, Replies()))
    for number in range(run.first_round, run.config.rounds + 1):
        train_round(run, number)


def train_round(run: SegmentationStrategy, number: int) -> None:
    """Run one round; ``run.lost`` says whether it counts."""
    config, run.number = run.config, number
    began, last = time.monotonic(), number == config.rounds

    # 1. Choose: of the sites that are connected now, the seed draws those of this round (`choose`).
    names = connected(run, number)
    present = run.choose(number) if run.training.begins_with_chosen else names
    run.state = run.training.begin(run.state, number, run.ask, present)

    # 2. Ask: every chosen site gets the model. 3. Check: a reply that fails is left out, with its reason.
    replies = ask_round(run, number)

    # 4. Merge: the task makes the next model, if replies are enough.
    merged, _ = run.aggregate_train(number, replies)
    counted = merged is not None
    run.lost = 0 if counted else run.lost + 1
    # wrong answers and rules that ask for more of them end no run
    answered = counted or len(replies.updates) + len(replies.refused) >= config.sites.minimum
    run.absent = 0 if answered else run.absent + 1
    if run.absent == MAX_LOST_ROUNDS:
        raise UserError(
            f"In {MAX_LOST_ROUNDS} rounds in a row fewer than {config.sites.minimum} sites answered; see log.txt for "
            f"the reasons, then go on with resume={run.run_dir}."
        )

    # 5. Polish: the last model may be refined by passes over the sums of all sites.
    if last and counted:
        polish(run, number, replies)

    # 6. Score: where the labelled images are, and as often as the settings say.
    unscored = time.monotonic()
    score = score_round(run, number, replies) if config.scores(number) else Score()
    scoring = time.monotonic() - unscored
    if last or number == 1:  # before and after
        run.scorer.draw(run.run_dir, number, run.state)

    # 7. Keep: checkpoint and line of metrics. 8. Say: how the round went and how long the rest takes.
    keep_round(run, number, replies, score, counted, time.monotonic() - began, scoring)


def connected(run: SegmentationStrategy, number: int) -> list[str]:
    """Return the sites that are there for a round; wait a while where there are too few for it to count.

    All may be gone at once, and come back: a connection that was down, a SuperLink that started again.
    """
    config, link, registry = run.config, run.exchange.link, run.registry
    registry.left_out = run.left_out.reasons()
    # newcomers join here, between rounds, never within one
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


def ask_round(run: SegmentationStrategy, number: int) -> Replies:
    """Send the messages of a round and return the checked replies, or their total where nothing else may be known."""
    schema = run.schema(number)
    if not run.config.privacy.totals_only:
        messages = run.configure_train(number, None, None, run.exchange.link.grid)  # type: ignore[arg-type]
        return run.exchange.collect(messages, schema, number)
    return exchange_totals(
        run.exchange,
        {name: run.payload(name, wire.TRAIN, number) for name in run.choose(number)},
        wire.TRAIN,
        number,
        schema,
        phase=run.training.phase(run.state, number),
        label="train",
        run_dir=run.run_dir,
        suspects=run.suspects,
    )


def polish(run: SegmentationStrategy, number: int, replies: Replies) -> None:
    """Pass over the sums of all connected sites, as often as the task says; ``replies`` takes the account."""
    missed = sum(not line.get("counted", True) for line in read_metrics(run.run_dir))
    for index in range(run.training.polish_passes + (missed if run.training.makes_up else 0)):
        payloads = {
            name: run.payload(name, wire.SUMS, number, {"what": "clusters"})
            for name in sorted(run.registry.sites)
        }
        schema = run.training.expect_sums(run.state, run.registry.weights_hash)
        if run.config.privacy.totals_only:
            sums = exchange_totals(
                run.exchange,
                payloads,
                wire.SUMS,
                number,
                schema,
                phase="clusters",
                label=f"polish-{index}",
                run_dir=run.run_dir,
                suspects=run.suspects,
            )
        else:
            sums = run.exchange(payloads, wire.SUMS, number, schema)
        replies.add_account(sums)
        # centroids of the round before are still valid
        if not sums.updates:
            log.warning("no site answered polish pass %d: the centroids stay as they are", index + 1)
            return
        run.state = run.training.polish(run.state, sums.to_merge)


def score_round(run: SegmentationStrategy, number: int, replies: Replies) -> Score:
    """Score the model where the labelled shard is; ``replies`` takes the reasons of sites that could not."""
    if run.config.eval.where != "sites":
        return run.scorer.score(run.state)
    messages = run.configure_evaluate(number, None, None, run.exchange.link.grid)  # type: ignore[arg-type]
    table = run.scorer.classes
    classes = 0 if table is None else table.num_classes
    found = run.exchange.collect(messages, run.training.expect_confusion(run.state, classes), number)
    for name, reason in found.quarantined.items():
        replies.quarantined[name] = sanitize(f"while scoring, {reason}")
    replies.refused |= found.refused
    return run.scorer.score_confusions(
        {name: update.groups["confusion"]["confusion"] for name, update in found.updates.items()}
    )


def keep_round(
    run: SegmentationStrategy,
    number: int,
    replies: Replies,
    score: Score,
    counted: bool,
    seconds: float,
    scoring: float,
) -> None:
    """Write checkpoint and metrics, then say in one line how the round went and how long the rest takes."""
    replies.quarantined = run.aside.quarantined | replies.quarantined
    replies.refused |= run.aside.refused
    run.aside = Replies()
    run.left_out.note(number, replies)
    told = replies.spent
    # figures of training win over the scorer's, but not every objective tells them
    known = {key for update in replies.updates.values() for key in update.metrics}
    line = RoundRecord(
        round=number,
        split=run.scorer.split,
        **score.fields(),
        loss=replies.mean("loss"),
        mean_cosine=replies.mean("mean_cosine") if "mean_cosine" in known else score.mean_cosine,
        displacement=replies.mean("displacement"),
        **({"kept": replies.mean("kept")} if "kept" in known else {}),
        sites=sorted(replies.updates, key=natural_key),
        quarantined=replies.quarantined | run.registry.refused,
        counted=counted,
        bytes_up=replies.bytes_up,
        bytes_down=replies.bytes_down,
        seconds=round(seconds, 3),
        **({"site_seconds": told, "scoring_seconds": round(scoring, 3)} if told else {}),
    )
    privacy, epsilon = run.config.privacy, None
    if privacy.noise_multiplier:
        epsilon = spent(run.run_dir, privacy)
        # JSON knows no infinity: null beside a delta is no bound at all
        line.epsilon = epsilon if math.isfinite(epsilon) else None
        line.delta = privacy.delta
    line.checkpoint_sha256 = keep_checkpoint(run, number, score, line.to_json())
    append_metrics(run.run_dir, line.to_json())
    prune_checkpoints(run.run_dir, run.config.checkpoint.keep)
    log.info("  ".join(_sentence(run, line, replies, score, epsilon)))


def _sentence(
    run: SegmentationStrategy, line: RoundRecord, replies: Replies, score: Score, epsilon: float | None
) -> list[str]:
    words = [f"round {line.round}/{run.config.rounds}", f"sites {len(line.sites)}/{len(replies.bytes_down)}"]
    if line.loss is not None:
        words.append(f"loss {line.loss:.4f}")
    words += score.progress()
    if epsilon is not None:
        words.append(f"epsilon {epsilon:.2f} a {run.config.privacy.unit}")
    up = sum(replies.bytes_up.values()) / max(len(replies.bytes_up), 1)
    size = f"{up / 1e3:.1f} kB" if up < 1e5 else f"{up / 1e6:.2f} MB"
    words += [f"up {size} a site", f"{line.seconds:.1f} s"]
    # the first round waits for the sites to get ready, and closed forms do most of their work in it: it says nothing
    if line.round > run.first_round:
        words.append(f"left {line.seconds * (run.config.rounds - line.round):.0f} s")
    return words


def keep_preparation(run: SegmentationStrategy, score: Score) -> None:
    """Keep what preparation alone gave: round 0."""
    line = RoundRecord(
        round=0,
        split=run.scorer.split,
        **score.fields(),
        loss=None,
        sites=sorted(run.registry.sites, key=natural_key),
        quarantined=run.registry.refused,
        bytes_up={},
        bytes_down={},
        seconds=round(time.monotonic() - run.started, 3),
    )
    line.checkpoint_sha256 = keep_checkpoint(run, 0, score, line.to_json())
    append_metrics(run.run_dir, line.to_json())
    run.scorer.draw(run.run_dir, 0, run.state)
    log.info("  ".join(["prepared", *score.progress()]))


def keep_checkpoint(run: SegmentationStrategy, number: int, score: Score, metrics: dict[str, Any]) -> str:
    """Write the checkpoint of a round and return the hash of its arrays."""
    saved = run.training.saved(run.state)
    # sites may all be gone by now: then the scorer's own model says it
    info = next((run.registry.sites[name] for name in sorted(run.registry.sites)), None)
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
    # only now is it safe to drop what the checkpoint takes the place of
    run.training.checkpointed(run.run_dir)
    return digest
