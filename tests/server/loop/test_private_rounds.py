"""Does a run with noise account for what it spends, and is what leaves a site really noisy?"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.ledger import read_egress
from client.privacy import private_sums
from common.checkpoint import checkpoint_path, load_checkpoint
from common.errors import UserError
from common.settings.privacy import Privacy
from server.loop.run import run
from server.privacy.accountant import FILE, epsilon_of, read_releases, spend, spent
from tests.support.federation import local_grid, metrics, tiny_config

SITES = 4
NOISE: dict[str, Any] = {
    "privacy__noise_multiplier": 2.0,
    "privacy__clip_sums": 0.5,
    "privacy__clip_scatter": 1.0,
    "privacy__feature_norm": 1.0,
    "eval__where": "none",
    "model__stages": "6,13",
    "sites__deadline_seconds": 1.0,
}
TRAINED: dict[str, Any] = {
    "preset": "fuss-clean",
    "centroids__merge": "lloyd",
    "aggregation__weights": "uniform",
    "privacy__clip_norm": 0.1,
    "rounds": 2,
}


def test_noise_that_bounds_nothing_is_null_as_json_knows_no_infinity(tmp_path: Path, scenes: Path) -> None:
    settings = NOISE | TRAINED | {"privacy__noise_multiplier": 1e-8}
    run_dir = run(local_grid(SITES), tiny_config(scenes, tmp_path / "run", SITES, **settings))
    assert "Infinity" not in (run_dir / "metrics.jsonl").read_text()
    assert all(line["epsilon"] is None and line["delta"] == 1e-5 for line in metrics(run_dir))
    assert "epsilon inf" in (run_dir / "log.txt").read_text()
    assert "no bound" in (run_dir / "report.html").read_text()


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize(
    ("settings", "releases"),
    [({"privacy__unit": "image", "centroids__polish_passes": 1}, [1, 2, 4]), (TRAINED, [2, 4])],
    ids=["default", "trained"],
)
def test_epsilon_is_written_every_round(
    tmp_path: Path, scenes: Path, settings: dict[str, Any], releases: list[int], secure: bool
) -> None:
    config = tiny_config(
        scenes, tmp_path / "run", SITES, **(NOISE | settings | {"privacy__secure_sum": secure})
    )
    run_dir = run(local_grid(SITES), config)
    found = metrics(run_dir)
    assert [line["epsilon"] for line in found] == [epsilon_of(2.0, count, 1e-5) for count in releases]
    assert all(line["counted"] and line["loss"] is None for line in found)
    assert read_releases(run_dir) == {f"site-{i}": releases[-1] for i in range(SITES)}
    assert f"epsilon {found[-1]['epsilon']:.2f}" in (run_dir / "log.txt").read_text()
    assert "epsilon" in (run_dir / "report.html").read_text()
    checkpoint = load_checkpoint(run_dir)
    assert all(np.isfinite(value).all() for value in checkpoint.head.values())
    ledger: list[Any] = read_egress(scenes / "cache" / "state" / "site-0")[-2:]
    left = {group for line in ledger for group in line["bytes"]}
    assert left <= {"facts", "metrics", "secure", "masked", "noisy"}


def test_little_noise_and_wide_bounds_give_nearly_the_plain_model(
    tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private_sums, "noise_key", lambda: bytes(32))
    wide = {"privacy__noise_multiplier": 1e-9, "privacy__clip_norm": 1e3, "privacy__clip_sums": 2.0}
    settings = TRAINED | {"rounds": 1, "centroids__empty": "keep"}
    noisy = run(
        local_grid(SITES), tiny_config(scenes, tmp_path / "noisy", SITES, **(NOISE | settings | wide))
    )
    plain_settings = settings | {"eval__where": "none", "model__stages": "6,13", "privacy__clip_norm": 0.0}
    plain = run(local_grid(SITES), tiny_config(scenes, tmp_path / "plain", SITES, **plain_settings))
    found, expected = load_checkpoint(noisy), load_checkpoint(plain)
    for name, value in expected.head.items():
        assert np.allclose(found.head[name], value, atol=1e-4)
    assert np.allclose(found.centroids, expected.centroids, atol=1e-3)


def test_what_was_given_away_stays_given_away_after_a_resume(tmp_path: Path, scenes: Path) -> None:
    settings = NOISE | TRAINED
    first = run(local_grid(SITES), tiny_config(scenes, tmp_path / "run", SITES, **settings))
    resume = str(checkpoint_path(first, 1))
    run(local_grid(SITES), tiny_config(scenes, tmp_path / "run", SITES, resume=resume, **settings))
    assert set(read_releases(first).values()) == {6}  # two rounds, and the second one again
    elsewhere = run(
        local_grid(SITES), tiny_config(scenes, tmp_path / "other", SITES, resume=resume, **settings)
    )
    assert set(read_releases(elsewhere).values()) == {8}


def test_sites_that_are_not_drawn_give_nothing_away(tmp_path: Path) -> None:
    privacy = Privacy(noise_multiplier=1.0)
    assert spent(tmp_path, privacy) == 0.0
    spend(tmp_path, ["a", "b"], 1)
    spend(tmp_path, ["a", "c"], 2)
    assert read_releases(tmp_path) == {"a": 3, "b": 1, "c": 2}
    assert spent(tmp_path, privacy) == epsilon_of(1.0, 3, 1e-5)
    assert spent(tmp_path, Privacy()) == math.inf


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"releases": 3}', '{"releases": {"a": "x"}}'])
def test_a_broken_account_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(UserError, match="given away"):
        read_releases(tmp_path)


def test_small_counts_of_confusion_matrices_stay_at_the_site(tmp_path: Path, scenes: Path) -> None:
    settings = {"eval__where": "sites", "eval__shard": "{site}.jsonl"}
    found = []
    for minimum in (0, 5, 10**9):
        config = tiny_config(
            scenes, tmp_path / str(minimum), SITES, privacy__minimum_count=minimum, **settings
        )
        line = metrics(run(local_grid(SITES), config))[0]  # in round 1 the model is the same
        found.append(line.get("confusion"))
    assert found[2] is None  # nothing to score, and the run goes on
    plain, bounded = np.asarray(found[0]), np.asarray(found[1])
    assert 0 < bounded.sum() < plain.sum()
    assert (bounded <= plain).all() and bounded[bounded > 0].min() >= 5


def test_clipping_and_small_counts_also_bound_plain_answers(tmp_path: Path, scenes: Path) -> None:
    settings = TRAINED | {
        "eval__where": "none",
        "model__stages": "6,13",
        "rounds": 1,
        "privacy__clip_norm": 1e-3,
    }
    short = load_checkpoint(
        run(local_grid(SITES), tiny_config(scenes, tmp_path / "short", SITES, **settings))
    )
    frozen = TRAINED | {
        "eval__where": "none",
        "model__stages": "6,13",
        "rounds": 1,
        "local__lr": 1e-30,
        "privacy__clip_norm": 0.0,
    }
    still = load_checkpoint(run(local_grid(SITES), tiny_config(scenes, tmp_path / "still", SITES, **frozen)))
    change = np.concatenate([np.ravel(short.head[k] - still.head[k]) for k in short.head])
    assert 0 < np.linalg.norm(change) <= 1e-3 * 1.01
    hidden = settings | {"privacy__minimum_count": 10**6, "preset": "default"}
    hidden |= {"rounds": 2, "aggregation__weights": "images"}
    axes = load_checkpoint(run(local_grid(SITES), tiny_config(scenes, tmp_path / "hidden", SITES, **hidden)))
    assert np.allclose(np.abs(axes.centroids).sum(axis=1), 1.0)  # no sum was sent: the first axes stand
