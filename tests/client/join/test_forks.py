"""Does a forked child end as its work ends, and can it always be ended?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from client.join.warm import end, exit_code, fork
from tests.conftest import ROOT


def wait(child: int, seconds: float = 10) -> int:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        code = exit_code(child)
        if code is not None:
            return code
        time.sleep(0.01)
    end([child], 0)
    raise TimeoutError(child)


def leave(code: object) -> Callable[[], None]:
    def work() -> None:
        raise SystemExit(code)

    return work


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sleep_long() -> None:
    time.sleep(60)


@pytest.mark.parametrize(
    ("work", "code"),
    [
        (lambda: None, 0),
        (leave(None), 0),
        (leave(7), 7),
        (leave("a sentence"), 1),
        (lambda: 1 / 0, 1),
        (kill_itself, -signal.SIGKILL),
    ],
)
def test_a_child_ends_as_its_work_ends(work: Callable[[], None], code: int) -> None:
    assert wait(fork(work)) == code


def test_the_childs_code_ends_where_its_work_ends(tmp_path: Path) -> None:
    # a child that came back would write a second line
    script = (
        "import os\nfrom client.join.warm import fork\n"
        "child = fork(lambda: 1 / 0)\nos.waitpid(child, 0)\nprint('once')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "once\n"
    assert "ZeroDivisionError" in done.stderr


def test_a_child_does_not_inherit_how_its_parent_takes_signals() -> None:
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        child = fork(sleep_long)
        os.kill(child, signal.SIGTERM)
        assert wait(child) == -signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_parent_takes_signals_as_before() -> None:
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert wait(fork(lambda: None)) == 0
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == earlier


def test_children_that_do_not_listen_are_killed() -> None:
    reading, writing = os.pipe()

    def deaf() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(writing, b"x")
        sleep_long()

    children = [fork(deaf), fork(sleep_long)]
    os.read(reading, 1)
    end(children, 0.2)
    for child in children:
        with pytest.raises(ChildProcessError):  # waited for already
            os.waitpid(child, 0)
    os.close(reading)
    os.close(writing)


def test_ending_nobody_takes_no_time() -> None:
    end([], 60)
