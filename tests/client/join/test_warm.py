"""Is a warm process fit to be forked, and does a task find in it what it would find in a fresh one?"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.common.constant import ErrorCode, SubStatus
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.supercore.task_identity import TaskIdentity

from client.join import warm
from tests.conftest import ROOT


def fresh(script: str, *words: str, **environment: str) -> dict[str, Any]:
    """Run a script that prints one JSON object in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


IN_A_CHILD = """
import json, os, sys
from client.join.warm import fork
from client.join.warm import forget_project, preload
preload(("torch", "client.work.unsupervised"))
import torch
status = open("/proc/self/status").read() if os.path.exists("/proc/self/status") else "Threads:\\t1"
threads = int(status.split("Threads:")[1].split()[0])
reading, writing = os.pipe()

def work():
    forget_project()
    sys.path.insert(0, sys.argv[1])
    import common
    import common.mark
    torch.manual_seed(0)
    square = torch.randn(700, 700)
    value = float((square @ square).sum())  # large enough for two threads
    os.write(writing, json.dumps({
        "mark": common.mark.MARK, "value": value, "threads": torch.get_num_threads(),
        "left": [name for name in sys.modules if name.partition(".")[0] in {"client", "server"}],
    }).encode())

child = fork(work)
ended, status = os.waitpid(child, 0)
torch.manual_seed(0)
square = torch.randn(700, 700)
print(json.dumps({
    "child": json.loads(os.read(reading, 9999)), "code": os.waitstatus_to_exitcode(status),
    "threads": threads, "cuda": torch.cuda.is_initialized(), "value": float((square @ square).sum()),
}))
"""


def test_a_child_computes_with_threads_and_runs_the_code_of_its_run(tmp_path: Path) -> None:
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "__init__.py").write_text("")
    (tmp_path / "common" / "mark.py").write_text("MARK = 'of the run'\n")
    found = fresh(IN_A_CHILD, str(tmp_path))
    assert found["code"] == 0
    assert found["threads"] == 1  # alone with itself when it forks
    assert found["cuda"] is False
    assert found["child"]["mark"] == "of the run"
    assert found["child"]["left"] == []
    assert found["child"]["threads"] == 2
    assert found["child"]["value"] == found["value"]


ON_CUDA = """
import json, os
from client.join.warm import fork
from client.join.warm import preload
preload(("torch", "torchvision", "client.work.unsupervised"))
import torch
codes = []
for _ in range(2):  # one after the other, as tasks come
    child = fork(lambda: torch.ones(8, device="cuda").sum().item() == 8 or os._exit(9))
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps({"codes": codes, "cuda": torch.cuda.is_initialized()}))
"""


@pytest.mark.gpu
def test_children_use_cuda_and_the_parent_does_not() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    assert fresh(ON_CUDA) == {"codes": [0, 0], "cuda": False}


@pytest.fixture
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's process-wide identity, put back afterwards."""
    for name, value in (("_task_id", 1), ("_run_id", 42), ("_node_id", 1)):
        monkeypatch.setattr(TaskIdentity, name, value)


def request(node: int) -> Message:
    message = Message(RecordDict({}), dst_node_id=node, message_type="train", group_id="3")
    message.metadata.__dict__["_message_id"] = "asked"
    return message


class Supernode:
    """Stands for the SuperNode: notes what it is told."""

    def __init__(self, waiting: list[Message]) -> None:
        self.waiting = waiting
        self.pushed: list[tuple[Message, int]] = []
        self.finished: list[tuple[str, str]] = []

    def PullMessages(self, _: object) -> PullAppMessagesResponse:
        messages = [message_to_proto(warm.remove_content_from_message(m)) for m in self.waiting]
        return PullAppMessagesResponse(messages_list=messages)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(warm, "_runtime_client", lambda address, *interceptors: self)
        monkeypatch.setattr(
            warm.flower, "push_message", lambda _, reply, place: self.pushed.append((reply, place.node_id))
        )
        monkeypatch.setattr(
            warm.flower, "push_task_output", lambda _, __, status, why: self.finished.append((status, why))
        )


@pytest.mark.parametrize("with_receipt", [True, False])
def test_a_death_is_reported_as_flower_would_report_it(
    monkeypatch: pytest.MonkeyPatch, identity: None, with_receipt: bool
) -> None:
    message = request(node=5)
    receipt = message_to_proto(warm.remove_content_from_message(message)).SerializeToString()
    supernode = Supernode([] if with_receipt else [message])
    supernode.install(monkeypatch)
    warm.report_death("", warm.Started(9, "token", -1), receipt if with_receipt else b"", "it was ended")
    [(reply, node)] = supernode.pushed
    assert node == 5
    assert reply.error.code == ErrorCode.CLIENT_APP_CRASHED
    assert reply.metadata.reply_to_message_id == "asked"
    assert reply.metadata.run_id == 42
    assert reply.metadata.src_node_id == 5
    assert supernode.finished == [(SubStatus.FAILED, "it was ended")]


def test_a_message_that_nobody_can_answer_is_left_to_flower(
    monkeypatch: pytest.MonkeyPatch, identity: None
) -> None:
    supernode = Supernode([])
    supernode.install(monkeypatch)
    warm.report_death("", warm.Started(9, "token", -1), b"", "it was ended")
    assert supernode.pushed == supernode.finished == []


def test_a_task_says_which_message_it_took(monkeypatch: pytest.MonkeyPatch, identity: None) -> None:
    message, context = request(5), Context(42, 5, {}, RecordDict(), {})
    reading, writing = os.pipe()
    monkeypatch.setattr(warm, "forget_project", lambda: None)
    monkeypatch.setattr(warm.signal, "signal", lambda *_: None)
    application = SimpleNamespace(content=b"code", hash_str=hashlib.sha256(b"code").hexdigest())
    monkeypatch.setattr(warm.flower, "pull_task_input", lambda client: (message, context, None, application))
    monkeypatch.setenv(warm.APPROVED, "")  # put back afterwards
    taken: list[Any] = []

    def run_clientapp(address: str, token: str, **_: object) -> None:
        taken.append(warm.flower.pull_task_input(None))  # type: ignore[arg-type]

    monkeypatch.setattr(warm.flower, "run_clientapp", run_clientapp)
    warm.run_task("", "token", writing)
    assert taken[0][0] is message
    assert os.environ[warm.APPROVED] == application.hash_str
    told = message_from_proto(ProtoMessage.FromString(warm._read(reading)))
    assert told.metadata.message_id == "asked"
    assert told.metadata.dst_node_id == 5
    os.close(writing)


def test_a_pipe_is_read_without_waiting() -> None:
    reading, writing = os.pipe()
    assert warm._read(reading) == b""  # the other end is open still
    os.close(writing)


def test_only_children_that_a_signal_ended_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    tasks = warm.WarmTasks("127.0.0.1:9", b"secret", notes.append)
    reported: list[int] = []
    monkeypatch.setattr(warm, "report_death", lambda address, task, *_: os._exit(40 + task.task_id))
    monkeypatch.setattr(
        warm,
        "run_task",
        lambda address, token, receipt: os._exit(int(token)) if token != "9" else os.kill(os.getpid(), 9),
    )
    for task_id, token in enumerate(("0", "1", "9")):
        tasks._start(task_id, token)
    for child in tasks.running:
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    tasks._collect()
    assert tasks.running == {}
    [report] = tasks.reports
    reported.append(os.waitstatus_to_exitcode(os.waitpid(report, 0)[1]))
    tasks.reports.clear()
    assert reported == [42]
    assert [note for note in notes if "did not finish" in note] == [notes[-1]]
    assert "task 2" in notes[-1] and "SIGKILL" in notes[-1]


def test_a_supernode_that_is_not_there_yet_is_no_error() -> None:
    tasks = warm.WarmTasks("127.0.0.1:9", b"secret", print)
    tasks.step()
    assert tasks.running == {}


def answer_by(codes: list[int], tasks: warm.WarmTasks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the SuperNode answer with these codes, one after the other, and never with a task."""

    def acquire(_: object) -> SimpleNamespace:
        code = codes.pop(0)
        if code != 200:
            request = httpx.Request("POST", "http://127.0.0.1:9")
            raise httpx.HTTPStatusError("no", request=request, response=httpx.Response(code, request=request))
        return SimpleNamespace(token="")

    monkeypatch.setattr(tasks, "_client", SimpleNamespace(AcquireTask=acquire))


def test_a_supernode_that_shuts_down_is_no_error_and_a_wrong_request_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tasks = warm.WarmTasks("127.0.0.1:9", b"secret", print)
    codes = [503, 500, 200, 404]
    answer_by(codes, tasks, monkeypatch)
    while codes[:1] != [404]:
        tasks.step()
    with pytest.raises(httpx.HTTPStatusError):
        tasks.step()


def test_an_executor_that_is_refused_for_a_moment_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests carry the time: between signing and reading one somebody may set the clock."""
    now = [100.0]
    monkeypatch.setattr(warm, "time", SimpleNamespace(monotonic=lambda: now[0]))
    tasks = warm.WarmTasks("127.0.0.1:9", b"secret", print)
    codes: list[int] = []
    answer_by(codes, tasks, monkeypatch)
    codes += [401, 200, 401]
    while codes:
        now[0] += warm.REFUSED_SECONDS
        tasks.step()
    now[0] += warm.REFUSED_SECONDS + 1
    codes += [401]
    with pytest.raises(httpx.HTTPStatusError):
        tasks.step()
