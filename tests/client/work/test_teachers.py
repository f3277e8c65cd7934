"""Does a site keep just the networks that the server names, where they belong, and say so when one is lost?"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from client.site import SiteConfig
from client.work.teachers import UNUSED_SECONDS, Teachers, collect_teachers
from common import wire
from common.checkpoint import arrays_hash
from common.errors import UserError
from common.models.network import build_network, network_to_arrays
from common.settings.load import load_config

pytestmark = pytest.mark.usefixtures("narrow")

CLASSES = 3
SETTINGS = load_config({"task": "adaptation", "network.weights": "random", "rounds": 9})


def network(seed: int) -> tuple[wire.Arrays, wire.Arrays]:
    return network_to_arrays(build_network(CLASSES, SETTINGS.network, seed))


def key_of(seed: int) -> str:
    weights, statistics = network(seed)
    return arrays_hash(weights | statistics)


def task(names: dict[str, int | str], sent: dict[str, int], number: int = 1, run: str = "run") -> wire.Task:
    """Name networks by role (a seed, or any words) and bring some of them along."""
    groups: wire.Groups = {}
    for role, seed in sent.items():
        groups[f"{role}-weights"], groups[f"{role}-statistics"] = network(seed)
    options: wire.Options = {"classes": CLASSES}
    options |= {role: key_of(name) if isinstance(name, int) else name for role, name in names.items()}
    return wire.Task(number, "", run, groups, options)


@pytest.fixture
def site(tmp_path: Path) -> SiteConfig:
    return SiteConfig(name="a", shards=(tmp_path,), cache_dir=tmp_path, state_dir=tmp_path / "state")


def collect(site: SiteConfig, given: wire.Task) -> Teachers:
    return collect_teachers(given, SETTINGS, site, "cpu")


def kept(site: SiteConfig) -> list[str]:
    return sorted(path.stem for path in site.state_dir.rglob("*") if path.is_file())


def is_network(found: object, seed: int) -> bool:
    assert found is not None
    weights, statistics = network_to_arrays(found)  # type: ignore[arg-type]
    return arrays_hash(weights | statistics) == key_of(seed)


def test_what_comes_is_kept_and_found_again(site: SiteConfig) -> None:
    first = collect(site, task({"teacher": 1, "pretrained": 2}, {"teacher": 1, "pretrained": 2}))
    assert is_network(first.teacher, 1) and is_network(first.pretrained, 2)
    assert list(first.held) == kept(site) == sorted([key_of(1), key_of(2)])
    again = collect(site, task({"teacher": 1, "pretrained": 2}, {}, 2))
    assert is_network(again.teacher, 1) and is_network(again.pretrained, 2) and again.held == first.held
    assert again.teacher is not None and not again.teacher.training
    assert not any(parameter.requires_grad for parameter in again.teacher.parameters())


def test_a_new_teacher_pushes_the_old_one_out(site: SiteConfig) -> None:
    collect(site, task({"teacher": 1, "pretrained": 2}, {"teacher": 1, "pretrained": 2}))
    found = collect(site, task({"teacher": 3, "pretrained": 2}, {"teacher": 3}, 2))
    assert is_network(found.teacher, 3) and kept(site) == sorted([key_of(3), key_of(2)])
    assert collect(site, task({}, {}, 3)).held == () and kept(site) == []


def test_one_network_in_two_roles_is_one_object(site: SiteConfig) -> None:
    found = collect(site, task({"teacher": 1, "pretrained": 1}, {"teacher": 1}))
    assert found.teacher is found.pretrained and kept(site) == [key_of(1)]


def test_after_the_last_round_nothing_is_left(site: SiteConfig) -> None:
    collect(site, task({"teacher": 1}, {"teacher": 1}, 8))
    last = collect(site, task({"teacher": 1}, {}, 9))
    assert is_network(last.teacher, 1) and last.held == () and kept(site) == []


@pytest.mark.parametrize("harm", ["gone", "cut", "empty"])
def test_a_lost_or_damaged_teacher_is_asked_for_again(site: SiteConfig, harm: str) -> None:
    collect(site, task({"teacher": 1}, {"teacher": 1}))
    (path,) = site.state_dir.rglob("*.safetensors")
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 1000 if harm == "cut" else 0])
    with pytest.raises(UserError, match="does not lie on this site's disk any more; it will be sent again"):
        collect(site, task({"teacher": 1}, {}, 2))
    assert kept(site) == []
    assert is_network(collect(site, task({"teacher": 1}, {"teacher": 1}, 3)).teacher, 1)


@pytest.mark.parametrize(
    "key",
    [
        "../../../../tmp/evil",
        "/etc/passwd",
        "A" * 64,
        "a" * 63,
        "a" * 64 + "\n",
        "a" * 32 + "/" + "a" * 31,
        "",
    ],
)
def test_a_hostile_name_never_becomes_a_path(site: SiteConfig, tmp_path: Path, key: str) -> None:
    outside = set(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"The server names its teacher .*; expected a SHA-256"):
        collect(site, task({"teacher": key}, {"teacher": 1}))
    assert set(tmp_path.rglob("*")) == outside


def test_a_hostile_run_key_stays_in_the_folder(site: SiteConfig, tmp_path: Path) -> None:
    collect(site, task({"teacher": 1}, {"teacher": 1}, run="../../../escaped/./"))
    (path,) = tmp_path.rglob("*.safetensors")
    assert path.resolve().is_relative_to(site.state_dir / "a" / "runs")


def test_arrays_of_another_network_are_named(site: SiteConfig) -> None:
    given = task({"teacher": 1}, {"teacher": 1})
    del given.groups["teacher-weights"]["head.4.bias"]
    with pytest.raises(ValueError, match=r"'head\.4\.bias' of the network is missing"):
        collect(site, given)


def test_runs_that_share_a_disk_leave_each_other_alone(site: SiteConfig) -> None:
    collect(site, task({"teacher": 1}, {"teacher": 1}, run="one"))
    collect(site, task({"teacher": 2}, {"teacher": 2}, run="two"))
    assert kept(site) == sorted([key_of(1), key_of(2)])
    assert is_network(collect(site, task({"teacher": 1}, {}, 2, run="one")).teacher, 1)


def test_what_another_run_has_not_used_for_long_goes(site: SiteConfig) -> None:
    for run, seed in (("one", 1), ("two", 2)):
        collect(site, task({"teacher": seed}, {"teacher": seed}, run=run))
    long_ago = time.time() - UNUSED_SECONDS - 60
    for path in site.state_dir.rglob("*.safetensors"):
        os.utime(path, (long_ago, long_ago))
    found = collect(site, task({"teacher": 1}, {}, 2, run="one"))  # its own is in use, however old
    assert is_network(found.teacher, 1) and kept(site) == [key_of(1)]
    path = next(site.state_dir.rglob("*.safetensors"))
    assert path.stat().st_mtime > long_ago + 60


def test_the_state_of_other_kinds_stays(site: SiteConfig) -> None:
    other = site.state_dir / "a" / "runs" / "one" / "round-0001.safetensors"
    other.parent.mkdir(parents=True)
    other.write_bytes(np.zeros(4, np.uint8).tobytes())
    os.utime(other, (0, 0))
    collect(site, task({}, {}, run="two"))
    collect(site, task({}, {}, 9, run="one"))
    assert other.is_file()
