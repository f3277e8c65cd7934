"""Is a site of the deployed long run really stopped and let go on, and are half-written rounds left alone?"""

from __future__ import annotations

import argparse
import subprocess
import time
from pathlib import Path

import pytest

from benchmarks import long_run
from benchmarks.deployed_run import RESPITE, Stopped, lines_of, run_settings
from common.settings.load import load_config, parse_assignments


def state(process: int) -> str:
    """Return the letter by which Linux tells what a process does: T is stopped."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_site_is_stopped_in_all_rounds_but_one_of_eight() -> None:
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as sleeper:
        site = Stopped(sleeper.pid)
        try:
            for number, stopped in ((RESPITE - 1, True), (RESPITE, False), (RESPITE + 1, True)):
                site.begin(number)
                end = time.monotonic() + 5
                while (state(sleeper.pid) == "T") != stopped and time.monotonic() < end:
                    time.sleep(0.01)
                assert (state(sleeper.pid) == "T") == stopped
            site.release()
        finally:
            sleeper.kill()


def test_a_round_counts_when_its_line_is_whole(tmp_path: Path) -> None:
    assert lines_of(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text('{"round": 1}\n{"rou')
    assert lines_of(tmp_path) == [{"round": 1}]


def test_the_runs_settings_are_settings(tmp_path: Path) -> None:
    options = argparse.Namespace(preset="fuss-clean", rounds=30, keep=3, sites=3)
    config = load_config(parse_assignments(run_settings(tmp_path, tmp_path / "run", options).split(" ")))
    assert (config.rounds, config.sites.expected, config.run_dir) == (30, 3, str(tmp_path / "run"))


def test_what_a_deployment_does_not_know_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        long_run.main(["--deployment", "--per-round", "2"])
    assert "--per-round goes with the simulated grid only" in capsys.readouterr().err
