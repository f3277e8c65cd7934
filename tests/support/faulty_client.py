"""A ClientApp that misbehaves on command: which site, in which round of which run, and how.

`write_faulty_project` makes a copy of the project whose ClientApp it is; everything else is the project's own. Tests
and sites talk by files of one folder: ``reached-RUN-SITE-ROUND`` appears when a site has come to a round in which it
waits, and ``go-RUN-SITE-ROUND`` lets it go on.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message
from flwr.clientapp import ClientApp

from client.app import app as real_app
from client.site import site_config
from common import wire
from common.settings.load import from_wire

PATIENCE_SECONDS = 400.0
SECRET = "/srv/secret/patient-17.png"


def _first(reply: Message) -> tuple[ArrayRecord, str]:
    head = reply.content.array_records["head"]
    return head, next(iter(head))


def nan(reply: Message) -> None:
    """One weight is no number."""
    head, name = _first(reply)
    value = head[name].numpy().copy()
    value.flat[0] = np.nan
    head[name] = Array(value)


def infinity(reply: Message) -> None:
    """One weight is infinite."""
    head, name = _first(reply)
    value = head[name].numpy().copy()
    value.flat[-1] = -np.inf
    head[name] = Array(value)


def wrong_shape(reply: Message) -> None:
    """Another matrix."""
    head, name = _first(reply)
    head[name] = Array(np.zeros((3, 2), np.float32))


def wrong_type(reply: Message) -> None:
    """Text instead of numbers."""
    head, name = _first(reply)
    head[name] = Array(head[name].numpy().astype("<U1"))


def truncated(reply: Message) -> None:
    """The last bytes are missing."""
    head, name = _first(reply)
    array = head[name]
    head[name] = Array(dtype=array.dtype, shape=array.shape, stype=array.stype, data=array.data[:-9])


def oversized(reply: Message) -> None:
    """Sixteen megabytes."""
    head, name = _first(reply)
    head[name] = Array(np.zeros(4_000_000, np.float32))


def other_version(reply: Message) -> None:
    """The wire format of another release."""
    reply.content.config_records["facts"]["wire-version"] = 99


CHANGES = {
    change.__name__: change
    for change in (nan, infinity, wrong_shape, wrong_type, truncated, oversized, other_version)
}


@contextlib.contextmanager
def full_disk(ledger: Path) -> Iterator[None]:
    """Let the system say that the disk is full, to whoever writes to ``ledger``."""
    kept = ledger.with_suffix(".kept")
    ledger.rename(kept)
    ledger.symlink_to("/dev/full")
    try:
        yield
    finally:
        kept.replace(ledger)


class FaultyApp(ClientApp):  # type: ignore[misc]
    """``plan`` maps ``RUN/SITE/ROUND`` to a fault; ``folder`` is where tests and sites meet."""

    def __init__(self, plan: Mapping[str, str], folder: str) -> None:
        super().__init__()
        self.plan = plan
        self.folder = Path(folder)

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message, well or not."""
        task = wire.decode_task(message)
        settings = from_wire(task.settings)
        site = site_config(context.node_config, settings)
        fault = self.plan.get(f"{settings.name}/{site.name}/{task.round}", "")
        if message.metadata.message_type != wire.TRAIN or not fault:
            return real_app(message, context)
        if fault == "raises":
            raise RuntimeError(f"boom over {SECRET}")
        if fault == "waits":
            self.wait(f"{settings.name}-{site.name}-{task.round}")
            return real_app(message, context)
        if fault == "full_disk":
            with full_disk(site.state_dir / site.name / "egress.jsonl"):
                return real_app(message, context)
        reply = real_app(message, context)
        CHANGES[fault](reply)
        return reply

    def wait(self, place: str) -> None:
        """Say where we are, and wait until a test lets us go on."""
        (self.folder / f"reached-{place}").touch()
        end = time.monotonic() + PATIENCE_SECONDS
        while not (self.folder / f"go-{place}").exists() and time.monotonic() < end:
            time.sleep(0.05)


def write_faulty_project(project: Path, target: Path, plan: Mapping[str, str], folder: Path) -> None:
    """Copy what Flower ships of ``project`` to ``target``, with this ClientApp in the place of its own."""
    for name in ("server", "client", "common"):
        shutil.copytree(project / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("LICENSE", "README.md"):
        shutil.copy(project / name, target / name)
    settings = (project / "pyproject.toml").read_text(encoding="utf-8")
    ours = 'clientapp = "client.app:app"'
    if ours not in settings:
        raise ValueError(f"pyproject.toml does not say {ours}")
    (target / "pyproject.toml").write_text(settings.replace(ours, 'clientapp = "client.faulty_app:app"'))
    shutil.copy(Path(__file__), target / "client" / "faulty_client.py")
    (target / "client" / "faulty_app.py").write_text(
        f"from client.faulty_client import FaultyApp\n\napp = FaultyApp({dict(plan)!r}, {str(folder)!r})\n"
    )
