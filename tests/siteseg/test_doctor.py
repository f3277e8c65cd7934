"""Tests the checks of ``siteseg doctor``: each names what is missing or slow, with the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from siteseg import doctor
from siteseg.command import siteseg_main


def only(found: object) -> doctor.Diagnosis:
    (diagnosis,) = found  # type: ignore[misc]
    return diagnosis  # type: ignore[no-any-return]


def test_packages_that_are_missing_are_named_with_what_fails() -> None:
    extras = {"export": (("no_such_package", "numpy"), "ONNX export")}
    found = {each.name: each for each in doctor.check_packages({"not_there": "why", "numpy": ""}, extras)}
    assert found["not_there"].verdict == "missing" and found["not_there"].text == "why"
    assert found["export"].verdict == "optional"
    assert "no_such_package" in found["export"].text and "numpy" not in found["export"].text
    assert "[export]" in found["export"].remedy


def test_threads_below_the_cores_are_slow() -> None:
    assert only(doctor.check_cores(8, 8, None)).verdict == "ok"
    slow = only(doctor.check_cores(8, 8, "1"))
    assert slow.verdict == "slow" and "OMP_NUM_THREADS" in slow.remedy


def test_little_room_is_slow() -> None:
    assert only(doctor.check_room("disk", 3e9, 2, "free some")).verdict == "ok"
    assert only(doctor.check_room("disk", 1e9, 2, "free some")).remedy == "free some"


def test_a_driver_that_torch_does_not_see_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert only(doctor.check_gpu(False)).verdict == "ok"
    assert only(doctor.check_gpu(True)).verdict == "slow"


def test_a_folder_that_cannot_hold_runs(tmp_path: Path) -> None:
    assert only(doctor.check_run_folder(tmp_path)).verdict == "ok"
    assert only(doctor.check_run_folder(tmp_path / "not there")).verdict == "missing"


def test_a_proxy_must_spare_this_machine() -> None:
    assert only(doctor.check_loopback({})).verdict == "ok"
    proxy = {"http_proxy": "http://proxy:3128"}
    assert "no_proxy" in only(doctor.check_loopback(proxy)).remedy
    assert only(doctor.check_loopback(proxy | {"no_proxy": "localhost,127.0.0.1"})).verdict == "ok"


def test_slow_arithmetic_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MEASURE_SECONDS", 0.01)
    monkeypatch.setattr(doctor, "LEAST_SPEED", 0.0)
    assert only(doctor.check_speed()).verdict == "ok"
    monkeypatch.setattr(doctor, "LEAST_SPEED", 1e9)
    assert only(doctor.check_speed()).verdict == "slow"


def test_the_command_counts_and_ends_with_2_where_something_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "MEASURE_SECONDS", 0.01)
    assert siteseg_main(["doctor"]) == 0
    assert "0 missing" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "REQUIRED", {"not_there": "why"})
    assert siteseg_main(["doctor"]) == 2
    assert "1 missing" in capsys.readouterr().out
