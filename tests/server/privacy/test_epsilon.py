"""Does epsilon agree with the integral that defines it, and stay under the bounds that are known for it?"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from common.settings.privacy import Privacy
from server.privacy.accountant import delta_of, epsilon_of, migrate_releases, read_releases, spend, spent
from tests.conftest import ROOT


def integrated(epsilon: float, noise: float) -> float:
    """Delta by its definition: the integral of max(p - e^epsilon q, 0) for N(1, z^2) against N(0, z^2)."""
    x = np.linspace(1 - 12 * noise, 1 + 12 * noise, 400_001)
    p = np.exp(-((x - 1) ** 2) / (2 * noise**2)) / (noise * math.sqrt(2 * math.pi))
    q = np.exp(-(x**2) / (2 * noise**2)) / (noise * math.sqrt(2 * math.pi))
    return float(np.maximum(p - math.exp(epsilon) * q, 0).sum() * (x[1] - x[0]))


@pytest.mark.parametrize("noise", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0, 4.0])
def test_delta_is_the_integral_that_defines_it(noise: float, epsilon: float) -> None:
    assert delta_of(epsilon, noise) == pytest.approx(integrated(epsilon, noise), rel=1e-5, abs=1e-12)


def renyi_bound(noise: float, releases: int, delta: float) -> float:
    """Epsilon by Renyi divergences (Mironov 2017): min over orders of k a / (2 z^2) + log(1/delta) / (a - 1)."""
    orders = np.linspace(1.01, 400, 40_000)
    return float(np.min(releases * orders / (2 * noise**2) - math.log(delta) / (orders - 1)))


@pytest.mark.parametrize("noise", [0.7, 1.0, 5.0])
@pytest.mark.parametrize("releases", [1, 10, 60])
def test_epsilon_solves_for_delta_and_lies_below_the_moments_bound(noise: float, releases: int) -> None:
    found = epsilon_of(noise, releases, 1e-5)
    assert integrated(found, noise / math.sqrt(releases)) == pytest.approx(1e-5, rel=1e-2)
    assert 0.6 * renyi_bound(noise, releases, 1e-5) < found <= renyi_bound(noise, releases, 1e-5)


def test_a_known_value() -> None:
    # the classical formula sqrt(2 ln(1.25 / delta)) would say 4.845
    assert epsilon_of(1.0, 1, 1e-5) == pytest.approx(4.3775, abs=1e-3)


def test_more_releases_cost_more_and_more_noise_less() -> None:
    by_count = [epsilon_of(2.0, k, 1e-5) for k in range(6)]
    assert by_count == sorted(by_count)
    assert by_count[0] == 0.0
    by_noise = [epsilon_of(z, 5, 1e-5) for z in (0.5, 1.0, 2.0, 8.0)]
    assert by_noise == sorted(by_noise, reverse=True)
    assert epsilon_of(0.0, 1, 1e-5) == math.inf


@pytest.mark.parametrize(("noise", "releases", "delta"), [(1.0, 1, 0.0), (1.0, -1, 1e-5), (-1.0, 1, 1e-5)])
def test_nonsense_is_refused(noise: float, releases: int, delta: float) -> None:
    with pytest.raises(ValueError, match="releases"):
        epsilon_of(noise, releases, delta)


def test_the_table_in_the_docs_is_true() -> None:
    text = (ROOT / "docs" / "privacy.md").read_text(encoding="utf-8")
    head, _, *rows = text[text.index("| releases |") :].split("\n(delta")[0].splitlines()
    noises = [float(cell.split("=")[1]) for cell in head.strip("| ").split("|")[1:]]
    assert len(rows) == 5 and len(noises) == 5
    for row in rows:
        releases, *cells = row.strip("| ").split("|")
        for noise, cell in zip(noises, cells, strict=True):
            assert float(cell) == pytest.approx(epsilon_of(noise, int(releases), 1e-5), rel=0.03)


def test_a_site_under_two_names_has_one_account(tmp_path: Path) -> None:
    # the same registered key: 10 releases at z = 2 are epsilon 7.5, 20 are 11.5
    for name in ("old", "new"):
        spend(tmp_path, [name, "other"], 10, {name: "key-a", "other": "key-b"})
    assert read_releases(tmp_path) == {"old": 20, "other": 20}
    assert spent(tmp_path, Privacy(noise_multiplier=2.0)) == epsilon_of(2.0, 20, 1e-5)
    assert 11 < epsilon_of(2.0, 20, 1e-5) < 12 and 7 < epsilon_of(2.0, 10, 1e-5) < 8


def test_a_key_that_is_new_at_each_start_goes_on_with_its_names_account(tmp_path: Path) -> None:
    spend(tmp_path, ["a"], 1)
    spend(tmp_path, ["a"], 1, {"a": "key-1"})
    spend(tmp_path, ["b"], 1, {"b": "key-1"})
    spend(tmp_path, ["b"], 1, {"b": "key-2"})
    assert read_releases(tmp_path) == {"a": 4}


def test_accounts_of_keys_outlive_a_resume_elsewhere(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    spend(first, ["a"], 3, {"a": "key-1"})
    migrate_releases(first, second)
    spend(second, ["b"], 1, {"b": "key-1"})
    assert read_releases(second) == {"a": 4}
