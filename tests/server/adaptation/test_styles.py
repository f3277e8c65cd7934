"""Do styles come from all sites that can give one, and are sites of like style found?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common import wire
from common.data.manifest import Partition, write_partition
from common.errors import UserError
from common.settings.load import load_config
from common.settings.schema import RunConfig
from common.styles.bank import BANK_FILE, StyleBank
from server.adaptation.styles import (
    CLUSTERS_FILE,
    gather_styles,
    group_sites,
    known_domains,
    place_newcomers,
    wants_styles,
)
from server.transport.reply_checks import ReplySchema

SHAPE = (3, 3, 3)


def config(**settings: Any) -> RunConfig:
    given = {"task": "adaptation", "style.transfer": "fourier", "style.side": 3}
    return load_config(given | {key.replace("__", "."): value for key, value in settings.items()})


def style(value: float) -> np.ndarray:
    return np.full(SHAPE, value, np.float32)


class Sites:
    """Answers for sites; remembers whom it was asked about."""

    def __init__(self, styles: dict[str, np.ndarray]) -> None:
        self.styles = styles
        self.asked: list[list[str]] = []

    def __call__(self, names: list[str], action: str, expectation: ReplySchema) -> dict[str, wire.Update]:
        assert action == wire.STYLE
        self.asked.append(names)
        answers = {
            name: wire.Update(name, "", {"style": {"style": self.styles[name]}})
            for name in reversed(names)
            if name in self.styles
        }
        return {name: update for name, update in answers.items() if expectation.fault(update) is None}


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"task": "supervised"}, False),
        ({"task": "supervised", "clusters__layers": "bn"}, True),
        ({}, True),
        ({"style__transfer": "none"}, False),
        ({"source__checkpoint": "somewhere"}, False),
        ({"source__checkpoint": "somewhere", "clusters__layers": "all"}, True),
    ],
)
def test_styles_are_asked_for_where_something_uses_them(settings: dict[str, Any], wanted: bool) -> None:
    assert wants_styles(config(**settings)) is wanted


def test_a_bank_holds_the_style_of_every_site_that_sent_one(tmp_path: Path) -> None:
    sites = Sites({"b": style(2), "a": style(1), "wide": np.ones((3, 5, 5), np.float32)})
    bank = gather_styles(sites, ["a", "b", "silent", "wide"], config(), tmp_path)
    assert list(bank.styles) == ["a", "b"]
    again = StyleBank.load(tmp_path / BANK_FILE, config().style)
    assert all(np.array_equal(again.styles[name], bank.styles[name]) for name in bank.styles)


@pytest.mark.parametrize(
    "broken", [style(-1), style(np.nan), np.ones(SHAPE, np.int64)], ids=["negative", "nan", "integers"]
)
def test_what_is_no_style_is_left_out(tmp_path: Path, broken: np.ndarray) -> None:
    bank = gather_styles(Sites({"a": style(1), "b": broken}), ["a", "b"], config(), tmp_path)
    assert list(bank.styles) == ["a"]


def test_no_style_at_all_ends_the_run_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No site sent its style; see log\.txt"):
        gather_styles(Sites({}), ["a"], config(), tmp_path)


def partition(folder: Path, domains: dict[str, dict[str, int]]) -> str:
    write_partition(folder, Partition("folder", "domain", 0, folder, {"a": 1}, domains=domains))
    return str(folder)


def test_groups_are_written_down_with_their_purity(tmp_path: Path) -> None:
    """Three dark sites and one bright one; two of the dark ones are nights, one is a tunnel: 3 of 4 are right."""
    values = {"a": 1.0, "b": 1.5, "c": 2.0, "d": 90.0}
    bank = StyleBank.of(config().style, {name: style(value) for name, value in values.items()})
    domains = {"a": {"night": 3}, "b": {"night": 2, "day": 1}, "c": {"tunnel": 4}, "d": {"day": 1}}
    shards = tmp_path / "shards"
    shards.mkdir()
    given = config(clusters__layers="bn", simulation__shards=partition(shards, domains))
    grouping = group_sites(bank, given, tmp_path)
    assert grouping.assignment == {"a": 0, "b": 0, "c": 0, "d": 1}
    record = json.loads((tmp_path / CLUSTERS_FILE).read_text())
    assert record["clusters"] == [["a", "b", "c"], ["d"]] and record["purity"] == 3 / 4
    assert known_domains(given) == {"a": "night", "b": "night", "c": "tunnel", "d": "day"}


def test_purity_is_left_out_where_a_domain_is_unknown(tmp_path: Path) -> None:
    bank = StyleBank.of(config().style, {name: style(ord(name)) for name in "abc"})
    given = config(clusters__layers="bn", simulation__shards=partition(tmp_path, {"a": {"night": 3}}))
    group_sites(bank, given, tmp_path)
    assert "purity" not in json.loads((tmp_path / CLUSTERS_FILE).read_text())
    assert known_domains(config()) == {}


def test_fewer_styles_than_clusters_end_the_run_with_a_sentence(tmp_path: Path) -> None:
    bank = StyleBank.of(config().style, {"a": style(1), "b": style(2)})
    with pytest.raises(UserError, match=r"clusters\.exact is 3, but 2 sites sent 2 different styles"):
        group_sites(bank, config(clusters__layers="bn", clusters__exact=3), tmp_path)


def test_newcomers_join_the_nearest_cluster_and_others_are_not_asked_again(tmp_path: Path) -> None:
    given = config(clusters__layers="bn", clusters__exact=2)
    bank = StyleBank.of(given.style, {"a": style(1), "b": style(9), "c": style(2)})
    grouping = group_sites(bank, given, tmp_path)
    sites = Sites({"d": style(8), "e": style(-1)})
    after = place_newcomers(grouping, sites, ["a", "b", "c", "d", "e"], given)
    assert sites.asked == [["d", "e"]]
    assert after.assignment == grouping.assignment | {"d": grouping.assignment["b"]}
    assert np.array_equal(after.centres, grouping.centres)
    assert place_newcomers(after, sites, ["a", "d"], given) is after and len(sites.asked) == 1
