"""Does a file appear whole or not at all?"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from common.errors import UserError
from common.system.atomic import atomic_path, atomic_write_bytes, atomic_write_text


def test_folders_are_made_and_files_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    atomic_write_text(path, "größer")
    atomic_write_bytes(path, b"two")
    assert path.read_bytes() == b"two" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), UserError("no")])
def test_a_failure_in_the_middle_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "x.bin"
    path.write_text("old")
    with pytest.raises(type(error)), atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        assert path.read_text() == "old", "visible before it is complete"
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_failure_of_a_first_file_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError), atomic_path(tmp_path / "x") as temporary:
        temporary.write_text("half")
        raise ValueError
    assert not list(tmp_path.iterdir())


def test_a_process_killed_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_text("old")
    child = os.fork()
    if child == 0:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            os._exit(9)  # nothing is cleaned up, as after a power cut
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert path.read_text() == "old"
    assert all(other.name.startswith(".x.bin.") for other in tmp_path.iterdir() if other != path)


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_results_are_as_readable_as_other_files(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        atomic_write_text(tmp_path / "x", "text")
        (tmp_path / "plain").touch()
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("x", "plain")}
    assert modes == {0o666 & ~umask}


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "x.bin"
    path.write_text("old")
    monkeypatch.setattr(os, call, full)
    with pytest.raises(UserError, match=r"Cannot write .*x\.bin: No space left on device; free some space"):
        atomic_write_text(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose a folder that you may write to"):
        atomic_write_text(tmp_path / "file" / "x", "text")

    def refuse(**_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(UserError, match="Permission denied"):
        atomic_write_text(tmp_path / "y", "text")
