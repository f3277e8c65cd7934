"""The rounds of a run: each goes from choosing sites to one line of log, in numbered steps."""

from __future__ import annotations

import logging
import time

from common import wire
from common.errors import UserError
from common.evaluation.score import Score
from server.loop.base import Run
from server.loop.record import keep_preparation, keep_round
from server.loop.secure_rounds import exchange_totals
from server.transport.exchange import Replies
from server.transport.reply_checks import sanitize

log = logging.getLogger(__name__)

MAX_LOST_ROUNDS = 3
"""After so many rounds in a row without enough replies a run ends: its sites will hardly come back by themselves."""


def train_rounds(run: Run) -> None:
    """Train until the last round; where there is none, keep what preparation gave."""
    if run.config.rounds == 0:
        keep_preparation(run, score_round(run, 0, Replies()))
    lost = 0
    for number in range(run.first_round, run.config.rounds + 1):
        lost = 0 if train_round(run, number, lost) else lost + 1


def train_round(run: Run, number: int, lost: int = 0) -> bool:
    """Run one round and return whether it counts; ``lost`` rounds just before it did not."""
    config, strategy = run.config, run.strategy
    began, last = time.monotonic(), number == config.rounds

    # 1. Choose: of the sites that are connected now, the seed draws those of this round (`strategy.choose`).
    names = connected(run, number)
    strategy.state = run.training.begin(run.state, number, run.ask, names)

    # 2. Ask: every chosen site gets the model. 3. Check: a reply that fails is left out, with its reason.
    replies = ask_round(run, number)

    # 4. Merge: the task makes the next model, if replies are enough.
    merged, _ = strategy.aggregate_train(number, replies)
    counted = merged is not None
    if not counted and lost + 1 == MAX_LOST_ROUNDS:
        raise UserError(
            f"{MAX_LOST_ROUNDS} rounds in a row had fewer than {config.sites.minimum} usable replies; see log.txt for "
            f"the reasons, then go on with resume={run.run_dir}."
        )

    # 5. Polish: the last model may be refined by passes over the sums of all sites.
    if last and counted:
        polish(run, number, replies)

    # 6. Score: where the labelled images are, and as often as the settings say.
    due = last or (config.eval.every > 0 and number % config.eval.every == 0)
    score = score_round(run, number, replies) if due else Score()
    if last or number == 1:  # before and after
        run.scorer.draw(run.run_dir, number, run.state)

    # 7. Keep: checkpoint and line of metrics. 8. Say: how the round went and how long the rest takes.
    keep_round(run, number, replies, score, counted, time.monotonic() - began)
    return counted


def connected(run: Run, number: int) -> list[str]:
    """Return the sites that are there for a round; wait a while where there are too few for it to count.

    All may be gone at once, and come back: a connection that was down, a SuperLink that started again.
    """
    config, link, registry = run.config, run.link, run.registry
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


def ask_round(run: Run, number: int) -> Replies:
    """Send the messages of a round and return the checked replies, or their total where nothing else may be known."""
    strategy, schema = run.strategy, run.strategy.schema(number)
    if not run.config.privacy.totals_only:
        messages = strategy.configure_train(number, None, None, run.link.grid)  # type: ignore[arg-type]
        return run.exchange.collect(messages, schema)
    return exchange_totals(
        run.exchange,
        {name: strategy.payload(name, wire.TRAIN, number) for name in strategy.choose(number)},
        wire.TRAIN,
        number,
        schema,
        phase=run.training.phase(run.state, number),
        label="train",
        run_dir=run.run_dir,
    )


def polish(run: Run, number: int, replies: Replies) -> None:
    """Pass over the sums of all connected sites, as often as the task says; ``replies`` takes the account."""
    strategy = run.strategy
    for index in range(run.training.polish_passes):
        payloads = {
            name: strategy.payload(name, wire.SUMS, number, {"what": "clusters"})
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
            )
        else:
            sums = run.exchange(payloads, wire.SUMS, number, schema)
        replies.add_account(sums)
        if not sums.updates:
            log.warning("no site answered polish pass %d: the centroids stay as they are", index + 1)
            return
        strategy.state = run.training.polish(run.state, sums.to_merge)


def score_round(run: Run, number: int, replies: Replies) -> Score:
    """Score the model where the labelled shard is; ``replies`` takes the reasons of sites that could not."""
    if run.config.eval.where != "sites":
        return run.scorer.score(run.state)
    messages = run.strategy.configure_evaluate(number, None, None, run.link.grid)  # type: ignore[arg-type]
    table = run.scorer.classes
    classes = 0 if table is None else table.num_classes
    found = run.exchange.collect(messages, run.training.expect_confusion(run.state, classes))
    for name, reason in found.quarantined.items():
        replies.quarantined[name] = sanitize(f"while scoring, {reason}")
    return run.scorer.score_confusions(
        {name: update.groups["confusion"]["confusion"] for name, update in found.updates.items()}
    )
