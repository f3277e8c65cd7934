"""Does a run's verdict become an exit code, and do settings reach Flower as they were given?"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from common.settings.section import flatten
from tests.support.scripts import load_script

control = load_script("control")


@pytest.fixture
def flower(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A flwr command that answers from a script: status by status, and what it was asked."""
    script: dict[str, Any] = {"statuses": [], "asked": [], "refuse": {}}

    def ask(self: Any, *words: str) -> dict[str, Any]:
        script["asked"].append(words)
        if words[0] == "run":
            script["settings"] = tomllib.loads(Path(words[-1]).read_text())
            return {"run-id": 7}
        if words[0] == "list":
            status = script["statuses"].pop(0)
            if isinstance(status, Exception):
                raise status
            return {"runs": [{"status": status, "status-details": "no site answered"}]}
        refusal = script["refuse"].get(Path(words[2]).stem)
        if refusal:
            raise control.ControlError(refusal)
        return {"success": True}

    monkeypatch.setattr(control.Control, "ask", ask)
    monkeypatch.setattr(control.Control, "command", lambda self, *words: ["true"])
    monkeypatch.setattr(control, "POLL_SECONDS", 0.0)
    return script


def test_a_completed_run_is_a_success(
    flower: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    flower["statuses"] = ["pending", control.ControlError("away"), "running", "finished:completed"]
    words = ["run", "--set", "name=night", "--set", "rounds=2", "--runs", str(tmp_path), "--shown", "runs"]
    assert control.main(words) == 0
    folder = Path(flower["settings"]["run-dir"])
    assert folder.parent == tmp_path and folder.name.startswith("night-")
    assert flower["settings"]["rounds"] == 2
    assert f"report: runs/{folder.name}/report.html" in capsys.readouterr().out


@pytest.mark.parametrize("given", ["/srv/runs/night", "/srv/runs/night/checkpoints/round-0004.safetensors"])
def test_a_run_goes_on_where_it_was(
    flower: dict[str, Any], capsys: pytest.CaptureFixture[str], given: str
) -> None:
    flower["statuses"] = ["finished:completed"]
    assert control.main(["run", "--set", f"resume={given}"]) == 0
    assert flower["settings"]["run-dir"] == "/srv/runs/night"
    assert "report: /srv/runs/night/report.html" in capsys.readouterr().out


@pytest.mark.parametrize("status", ["finished:failed", "finished:stopped"])
def test_a_run_that_did_not_complete_is_a_failure_with_its_reason(
    flower: dict[str, Any], capsys: pytest.CaptureFixture[str], status: str
) -> None:
    flower["statuses"] = [status]
    assert control.main(["run"]) == 1
    assert capsys.readouterr().err == f"error: run 7 is {status}: no site answered\n"


def test_a_superlink_that_stays_away_ends_the_wait(flower: dict[str, Any]) -> None:
    flower["statuses"] = [control.ControlError("away")] * 50
    assert control.main(["run"]) == 1
    assert len(flower["statuses"]) == 50 - control.PATIENCE


def test_keys_are_registered_under_their_names_and_once(
    flower: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("b", "a"):
        (tmp_path / f"{name}.pub").write_text("key")
    flower["refuse"] = {"a": "Error: [23] Public key already in use"}
    assert control.main(["register", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == ["a: was registered already", "b: registered"]
    flower["refuse"] = {"b": "Connection to the SuperLink is unavailable"}
    assert control.main(["register", str(tmp_path / "b.pub")]) == 1


def test_recipe_and_assignments_become_flat_toml(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('name = "x"\nrounds = 3\n[local]\nlr = 1e-3\n[model]\nnonlinear = true\n')
    settings = control.read_settings(recipe, ["rounds=5", 'name=it\'s "so"', "model.nonlinear=false"])
    text = control.settings_toml(settings)
    assert flatten(tomllib.loads(text)) == {
        "name": 'it\'s "so"',
        "rounds": 5,
        "local.lr": 0.001,
        "model.nonlinear": False,
    }
    with pytest.raises(UserError, match="key=value"):
        control.read_settings(None, ["rounds"])


def test_without_a_certificate_the_connection_says_that_it_is_insecure(tmp_path: Path) -> None:
    plain = tomllib.loads(control.connection_toml("127.0.0.1:8000", None))["superlink"]["federation"]
    assert plain == {"address": "127.0.0.1:8000", "insecure": True}
    secured = tomllib.loads(control.connection_toml("127.0.0.1:8000", tmp_path / "ca.crt"))
    assert secured["superlink"]["federation"]["root-certificates"] == str(tmp_path / "ca.crt")
    assert "insecure" not in secured["superlink"]["federation"]
