"""The Flower ClientApp: one handler for each kind of message.

In deployment every message starts a new process, so heavy imports stay inside the handlers that need them.
Whatever goes wrong becomes an answer that names the reason instead of a silent site.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.ledger import record_egress
from client.policy import admitted, need_approval, read_policy
from client.reasons import coded_reason, public_reason
from client.site import SiteConfig, environment_name, site_config
from client.work.base import Handler, SiteTask, site_task
from common import wire
from common.errors import UserError
from common.settings.load import from_wire
from common.settings.schema import RunConfig

log = logging.getLogger(__name__)
app = ClientApp()


def by_task(choose: Callable[[SiteTask], Handler]) -> Handler:
    """Return a handler that does what the run's task does for a kind of message."""
    return lambda task, settings, site: choose(site_task(settings))(task, settings, site)


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Say who this site is, after making sure that its features are cached."""
    return answer(message, context, wire.HELLO, by_task(lambda chosen: chosen.hello))


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round of local training."""
    return answer(message, context, wire.TRAIN, by_task(lambda chosen: chosen.train))


@app.query("style")
def style(message: Message, context: Context) -> Message:
    """The style of this site's images: a few numbers."""
    return answer(message, context, wire.STYLE, by_task(lambda chosen: chosen.style))


@app.query("sums")
def sums(message: Message, context: Context) -> Message:
    """Sufficient statistics of this site's codes under the model in the message."""
    return answer(message, context, wire.SUMS, by_task(lambda chosen: chosen.sums))


@app.query("secure_keys")
def secure_keys(message: Message, context: Context) -> Message:
    """Public keys for one secure sum."""
    from client.privacy.secure_site import answer_keys

    return answer(message, context, wire.SECURE_KEYS, answer_keys)


@app.query("secure_shares")
def secure_shares(message: Message, context: Context) -> Message:
    """Encrypted shares of this site's secrets for the other sites."""
    from client.privacy.secure_site import answer_shares

    return answer(message, context, wire.SECURE_SHARES, answer_shares)


@app.query("secure_consistency")
def secure_consistency(message: Message, context: Context) -> Message:
    """A signature of what was asked and who is in the total of one secure sum."""
    from client.privacy.secure_site import answer_consistency

    return answer(message, context, wire.SECURE_CONSISTENCY, answer_consistency)


@app.query("secure_unmask")
def secure_unmask(message: Message, context: Context) -> Message:
    """The shares that the total of one secure sum needs."""
    from client.privacy.secure_site import answer_unmask

    return answer(message, context, wire.SECURE_UNMASK, answer_unmask)


@app.evaluate()
def score(message: Message, context: Context) -> Message:
    """Score the model in the message on this site's labelled evaluation shard."""
    return answer(message, context, wire.EVALUATE, by_task(lambda chosen: chosen.evaluate))


def answer(message: Message, context: Context, action: str, handler: Handler) -> Message:
    """Decode, handle, write the ledger, encode; an error becomes a reply that names its reason."""
    node = context.node_config
    name = str(node.get("site", "") or f"site-{node.get('partition-id', '?')}")
    state_dir = None
    simulated = "partition-id" in node and not (
        node.get("shard") or os.environ.get(environment_name("shard"))
    )
    private: tuple[object, ...] = (node.get("shard", ""),)
    dtype, round_number, run_key = "float32", 0, ""

    def failure(error: Exception) -> wire.Update:
        # nothing but a sentence; Flower itself would send the text with its paths
        log.exception("site %s could not answer %s", name, action)
        # a simulated site's files are those of who reads the log
        reason = public_reason(error, private) if simulated else coded_reason(error)
        return wire.Update(site=name, weights_hash="", facts={"error": reason})

    try:
        task = wire.decode_task(message)
        settings = from_wire(task.settings)
        site = site_config(node, settings)
        site.need_name()
        name, state_dir, dtype = site.name, site.state_dir / site.name, settings.wire.dtype
        private = site.private_paths()
        round_number, run_key = task.round, task.run_key
        if site.policy is not None:
            policy = read_policy(site.policy)
            need_approval(policy)
            settings = admitted(policy, action, task, settings, site)
        update = _handle(handler, task, settings, site)
    except Exception as error:  # whatever it is, the server must not wait for a silent site
        update = failure(error)
    update = replace(update, round=round_number, run_key=run_key)
    content = wire.encode_update(update, dtype)
    if state_dir is not None:  # else there is no ledger to write to
        sizes = wire.group_bytes(content)
        try:
            record_egress(state_dir, run=run_key, round_number=round_number, action=action, sizes=sizes)
        except UserError as error:
            update = replace(failure(error), round=round_number, run_key=run_key)
            content = wire.encode_update(update, dtype)
    return Message(content, reply_to=message)


def _handle(handler: Handler, task: wire.Task, settings: RunConfig, site: SiteConfig) -> wire.Update:
    """Run a handler on the prepared device; a GPU without room says what helps."""
    from common.system.device import room_on_device

    prepare_device(site, settings)
    batch = settings.local.batch
    with room_on_device(
        f"lower local.batch ({batch}), raise this site's gpu-share, or set this site's device to cpu"
    ):
        return handler(task, settings, site)


def prepare_device(site: SiteConfig, settings: RunConfig) -> None:
    """Do what has to be done before torch computes: threads, reproducible arithmetic, memory of this site alone."""
    import torch

    from common.system.device import choose_device, limit_memory, set_deterministic

    if site.threads and torch.get_num_threads() != site.threads:
        torch.set_num_threads(site.threads)  # sites that share a machine keep out of each other's way
    set_deterministic(settings.deterministic)
    limit_memory(choose_device(site.device), site.gpu_share)
