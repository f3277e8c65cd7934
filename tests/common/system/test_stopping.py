"""Does a stop wait for the file that is being written, and does no other begin?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.errors import UserError
from common.system.atomic import atomic_write_text
from tests.conftest import ROOT

WORK = """
import sys, threading, time
from pathlib import Path
from common.system.atomic import atomic_path
from common.system.stopping import stopping_in_order

def write(name, seconds):
    with atomic_path(Path(sys.argv[1]) / name) as temporary:
        with temporary.open("w") as file:
            file.write("first half, ")
            file.flush()
            print("writing", flush=True)
            time.sleep(seconds)
            file.write("second half")

with stopping_in_order(lambda: "these are the last words"):
    write("one", 2.0)
    write("two", 0.0)
    time.sleep(60)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_the_current_file_becomes_whole_and_no_other_begins(tmp_path: Path, how: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WORK, str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    began = time.monotonic()
    process.send_signal(how)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + how
    assert 1 < time.monotonic() - began < 10
    assert said.endswith("these are the last words\n")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"one": "first half, second half"}


def test_a_device_is_written_to_and_stays(tmp_path: Path) -> None:
    before = Path("/dev/null").stat()
    atomic_write_text("/dev/null", "figures")
    after = Path("/dev/null").stat()
    assert (before.st_ino, before.st_rdev, before.st_mode) == (after.st_ino, after.st_rdev, after.st_mode)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    atomic_write_text(pipe, "figures")
    assert os.read(reading, 100) == b"figures"
    os.close(reading)


def test_a_full_device_is_a_sentence() -> None:
    with pytest.raises(UserError, match=r"/dev/full.*choose"):
        atomic_write_text("/dev/full", "figures")


REPORTING = """
import logging, subprocess, sys, threading, time
from common.system.stopping import stopping_in_order

def look_after(child, how):
    child.wait()
    try:
        raise RuntimeError("a child has ended")
    except RuntimeError:
        if how == "raise":
            raise
        logging.exception("as Flower says it")

with stopping_in_order(lambda: time.sleep(0.5) or "these are the last words"):
    for how in ("raise", "log"):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        threading.Thread(target=look_after, args=(child, how), daemon=True).start()
    print("working", flush=True)
    time.sleep(60)
"""


def test_threads_do_not_report_the_processes_that_a_stop_ends() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", REPORTING],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert said.split("\n") == ["", "SIGINT: stopping after the current file", "these are the last words", ""]
