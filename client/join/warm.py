"""Executor of a SuperNode whose tasks are forks that have torch imported already.

Flower starts a fresh Python process for every message. Here one process imports torch once and asks the SuperNode for
tasks, in the place of Flower's executor (SuperNode with ``--isolation process``). It forks a child for each of them,
which goes on exactly as ``flwr-clientapp`` does. A forked child shares the memory of its parent. In return the
parent has to be alone with itself: no other threads, no CUDA. A task runs the code that came with its run, never
the copy of this project that the site happens to have.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
from flwr.app.message import remove_content_from_message
from flwr.common.constant import SubStatus
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto import message_pb2
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullAppMessagesRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.runtime import run_clientapp as flower

from client.policy import APPROVED, PolicyRefusal, check_application
from client.site import environment_name
from common import wire
from common.errors import UserError

_log = logging.getLogger(__name__)

_POLICY = environment_name("policy")
_PROJECT = frozenset({"client", "common", "server", "partitions"})
# what tasks import; the last for the sake of the libraries behind it
HEAVY = ("torch", "torchvision", "client.work.unsupervised")
# so long may a SuperNode not know its executor: requests carry the time, and somebody may set the clock meanwhile
REFUSED_SECONDS = 5.0
_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
_RECEIPT_BYTES = 1 << 16  # what a pipe of Linux holds; a message without content has some hundred bytes
_STOP_SECONDS = 3.0  # a task that is stopped has nothing to save; the run asks again


STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)  # what service managers and terminals send
_END_LOOK_SECONDS = 0.02  # children end within milliseconds of SIGTERM, so that a stop is not felt


def fork(work: Callable[[], None]) -> int:
    """Run ``work`` in a child and return the child's id; the child never comes back into the caller's code.

    The child meets signals as a fresh process does, and ends as ``work`` ends. That is with the code of a
    `SystemExit`, with 1 after any other exception (which is logged), else with 0.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    # a signal that came between fork and reset would go to the parent's handler and be lost for the child
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    child = os.fork()
    if child:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)
        return child
    code = 1
    try:
        for number in STOPPING:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)
        work()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:  # nothing may climb into the parent's code, which would run twice from there
        _log.exception("process %d failed", os.getpid())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def exit_code(child: int) -> int | None:
    """Return how a child ended (below 0: by that signal), once; None while it runs."""
    ended, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def end(children: Iterable[int], seconds: float) -> None:
    """Ask children to stop, and kill those that still run after ``seconds``."""
    left = set(children)
    for how in (signal.SIGTERM, signal.SIGKILL):
        for child in left:
            os.kill(child, how)  # its id cannot have gone to another process before it is waited for
        until = time.monotonic() + seconds
        while left and (how is signal.SIGKILL or time.monotonic() < until):
            left -= {child for child in left if exit_code(child) is not None}
            if left:
                time.sleep(_END_LOOK_SECONDS)


def preload(modules: tuple[str, ...] = HEAVY) -> None:
    """Import what tasks will need. CUDA stays untouched: a process that was forked after it began cannot use it."""
    for name in modules:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # else the children's garbage collector writes to, and so copies, every page they share


def forget_project() -> None:
    """Make this process import the project anew, from the run's code."""
    # Flower puts the run's code first on the path
    for name in [name for name in sys.modules if name.partition(".")[0] in _PROJECT]:
        del sys.modules[name]


@dataclass(frozen=True)
class Started:
    """A task that a child works on; ``receipt`` is where the child says which message it took."""

    task_id: int
    token: str
    receipt: int


class WarmTasks:
    """Takes tasks from the SuperNode at ``address`` (plain HTTP on loopback) and forks a child for each.

    ``secret`` is what the SuperNode knows its executor by. Raises httpx's `HTTPStatusError` where it does not for
    longer than `REFUSED_SECONDS`, or where the request itself is wrong (other statuses of the 400s).
    """

    def __init__(self, address: str, secret: bytes, notice: Callable[[str], None]) -> None:
        self.address, self.notice = address, notice
        self.running: dict[int, Started] = {}
        self.reports: set[int] = set()
        self._refused_since: float | None = None
        self._client = _runtime_client(
            address,
            RuntimeVersionHttpInterceptor(component_name="SuperExec"),
            SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={_ACQUIRE}),
        )

    def step(self) -> None:
        """See to children that have ended, then start the next task if there is one."""
        self._collect()
        try:
            found = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
        except httpx.TransportError:
            return  # it is still starting, or about to end: whoever started it watches it
        except httpx.HTTPStatusError as error:
            if error.response.is_server_error:
                return  # likewise: it answers 503 while it shuts down
            if error.response.status_code != httpx.codes.UNAUTHORIZED:
                raise
            now = time.monotonic()
            self._refused_since = self._refused_since or now
            if now - self._refused_since > REFUSED_SECONDS:
                raise
            return
        self._refused_since = None
        if found.token:
            self._start(found.task.task_id, found.token)

    def stop(self) -> None:
        """End all children."""
        end([*self.running, *self.reports], _STOP_SECONDS)
        gc.unfreeze()  # or libraries report as leaks, at exit, what the collector was kept away from

    def _start(self, task_id: int, token: str) -> None:
        reading, writing = os.pipe()
        child = fork(partial(run_task, self.address, token, writing))
        os.close(writing)
        self.running[child] = Started(task_id, token, reading)
        self.notice(f"process {child} works on task {task_id}")

    def _collect(self) -> None:
        self.reports -= {child for child in self.reports if exit_code(child) is not None}
        for child, task in list(self.running.items()):
            code = exit_code(child)
            if code is None:
                continue
            del self.running[child]
            receipt = _read(task.receipt)
            if code < 0:  # Flower itself ends its tasks with 0 or 1, after it has answered
                reason = f"its process was ended by {signal.Signals(-code).name}"
                self.notice(f"process {child} did not finish task {task.task_id}: {reason}")
                self.reports.add(fork(partial(report_death, self.address, task, receipt, reason)))


def run_task(address: str, token: str, receipt: int) -> None:
    """Do one task as ``flwr-clientapp`` does, in a child of its own; ends with `SystemExit`."""
    take, policy = flower.pull_task_input, os.environ.get(_POLICY)

    def take_and_tell(client: RuntimeHttpClient) -> Any:
        # Flower's own handler would finish the task without an answer, and the server would wait for one;
        # SIGINT stays with it: so it learns that the run or the parent has ended
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        taken = take(client)
        os.write(receipt, message_to_proto(remove_content_from_message(taken[0])).SerializeToString())
        message, context, _, application = taken
        try:
            found = check_application(
                Path(policy) if policy else None, application.content, application.hash_str
            )
        except UserError as error:  # nothing of the application has been unpacked or imported
            _log.warning("%s", error)
            reason = str(error) if isinstance(error, PolicyRefusal) else "This site's policy cannot be read."
            refused = wire.refusal_reply(message, str(context.node_config.get("site", "")), reason)
            flower.push_message(client, refused, context)
            flower.push_task_output(client, context, SubStatus.COMPLETED, "")
            os._exit(0)
        os.environ[APPROVED] = found
        return taken

    forget_project()
    flower.pull_task_input = take_and_tell
    flower.run_clientapp(
        address, token, insecure=True, parent_pid=os.getppid(), runtime_dependency_install=False
    )


def report_death(address: str, task: Started, receipt: bytes, reason: str) -> None:
    """Answer in the place of a child that was killed: Flower alone would notice after a minute.

    ``receipt`` is the message that the child took, or empty where it had not come so far. Where it was killed
    while it took the message, nobody can answer, and the minute has to pass.
    """
    client = _runtime_client(
        address,
        RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"),
        RuntimeTokenHttpInterceptor(task.token),
    )
    if receipt:
        asked = message_pb2.Message.FromString(receipt)
    else:
        waiting = client.PullMessages(PullAppMessagesRequest()).messages_list
        if not waiting:
            _log.warning("task %d: the server will learn of it within a minute", task.task_id)
            return
        asked = waiting[0]
    request = message_from_proto(asked)
    TaskIdentity.task_id = task.task_id
    TaskIdentity.run_id = request.metadata.run_id
    TaskIdentity.node_id = request.metadata.dst_node_id
    place = SimpleNamespace(run_id=request.metadata.run_id, node_id=request.metadata.dst_node_id)
    flower.push_message(client, wire.crash_reply(request, reason), cast(Any, place))
    flower.push_task_output(client, None, SubStatus.FAILED, reason)


def _runtime_client(address: str, *interceptors: Any) -> RuntimeHttpClient:
    return RuntimeHttpClient.from_server_address(
        address, insecure=True, root_certificates=None, interceptors=interceptors
    )


def _read(pipe: int) -> bytes:
    """Return what is in a pipe, without waiting: a process that the child left behind may hold the other end."""
    os.set_blocking(pipe, False)
    try:
        return os.read(pipe, _RECEIPT_BYTES)
    except BlockingIOError:
        return b""
    finally:
        os.close(pipe)
