"""Does each rule of a site's policy refuse what it names, and does the site's own account hold over all runs?"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from client.policy import (
    APPROVED,
    Policy,
    PolicyRefusal,
    admitted,
    approve,
    approved,
    check_application,
    epsilon_given,
    policy_toml,
    read_policy,
)
from client.site import site_config
from common import wire
from common.errors import UserError
from common.privacy.epsilon import epsilon_of
from common.settings.load import load_config
from common.settings.schema import RunConfig
from server.loop.run import run
from tests.support.federation import local_grid, metrics, tiny_config


def admit(
    tmp_path: Path, policy: Policy, action: str = wire.TRAIN, phase: str = "steps", **more: Any
) -> RunConfig:
    settings = load_config({"simulation.shards": str(tmp_path)} | more)
    site = site_config({"partition-id": 0}, settings)
    task = wire.Task(1, "", "run", options={"phase": phase})
    return admitted(policy, action, task, settings, site)


@pytest.mark.parametrize(
    ("rule", "given", "more"),
    [
        ("tasks", {"tasks": ("supervised",)}, {}),
        ("presets", {"presets": ("fuss-ref",)}, {}),
        ("phases", {"phases": ("hello", "sums")}, {}),
        ("secure-sum", {"secure_sum": "required"}, {}),
        ("secure-sum", {"secure_sum": "refused"}, {"privacy.secure-sum": True}),
        ("smallest-quorum", {"smallest_quorum": 0.9}, {"privacy.secure-sum": True}),
        ("smallest-federation", {"smallest_federation": 3}, {}),
        ("largest-clip-norm", {"largest_clip_norm": 1.0}, {}),
        ("largest-clip-norm", {"largest_clip_norm": 1.0}, {"privacy.clip-norm": 2.0}),
        ("minimum-count", {"minimum_count": 9}, {"privacy.noise-multiplier": 1.0}),
        ("largest-epsilon", {"largest_epsilon": 1.0}, {}),
    ],
)
def test_what_a_rule_refuses_names_the_rule(
    tmp_path: Path, rule: str, given: dict[str, Any], more: dict[str, Any]
) -> None:
    with pytest.raises(PolicyRefusal, match=f"rule '{rule}' is"):
        admit(tmp_path, Policy(**given), **more)
    admit(tmp_path, Policy(), **more)


def test_a_site_may_raise_minimum_counts_and_not_lower_them(tmp_path: Path) -> None:
    raised = admit(tmp_path, Policy(minimum_count=7, minimum_images=50)).privacy
    assert (raised.minimum_count, raised.minimum_images) == (7, 50)
    lowered = admit(
        tmp_path, Policy(minimum_count=1, minimum_images=1), **{"privacy.minimum-count": 5}
    ).privacy
    assert (lowered.minimum_count, lowered.minimum_images) == (5, RunConfig().privacy.minimum_images)


def test_the_account_is_kept_over_runs_and_says_no_before_the_answer(tmp_path: Path) -> None:
    policy = Policy(largest_epsilon=epsilon_of(2.0, 3, 1e-5))
    state = tmp_path / "cache" / "state" / "site-0"
    for count in (1, 2, 3):
        admit(tmp_path, policy, wire.SUMS, **{"privacy.noise-multiplier": 2.0, "seed": count})
        assert epsilon_given(policy, state) == pytest.approx(epsilon_of(2.0, count, 1e-5))
    with pytest.raises(PolicyRefusal, match=r"largest-epsilon.*with this answer it would be"):
        admit(tmp_path, policy, wire.SUMS, **{"privacy.noise-multiplier": 2.0})
    assert epsilon_given(policy, state) == pytest.approx(policy.largest_epsilon)
    admit(tmp_path, policy, wire.HELLO, **{"privacy.noise-multiplier": 2.0})  # costs nothing
    (state / "epsilon.json").write_text("{}")
    with pytest.raises(PolicyRefusal, match="account"):
        admit(tmp_path, policy, wire.SUMS, **{"privacy.noise-multiplier": 2.0})


def test_a_file_is_written_read_and_refused_in_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(policy_toml(Policy()))
    assert read_policy(file) == Policy()
    file.write_text("taks = []")
    with pytest.raises(UserError, match="taks"):
        read_policy(file)


def test_only_approved_applications_whose_hash_is_true_pass(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text("")
    content = b"an application"
    digest = hashlib.sha256(content).hexdigest()
    with pytest.raises(PolicyRefusal, match=rf"rule 'code' is 'approved', and application {digest}"):
        check_application(file, content, digest)
    with pytest.raises(UserError, match="no hash"):
        approve(file, "abc")
    approve(file, digest)
    approve(file, digest)
    assert approved(file) == [digest]
    assert check_application(file, content, digest) == digest
    with pytest.raises(
        PolicyRefusal, match="hash that the server names"
    ):  # another one under an approved name
        check_application(file, b"another", digest)
    assert check_application(None, content, digest) == digest


def test_a_run_goes_on_without_a_site_whose_policy_refuses_it(
    tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "policy.toml"
    file.write_text('tasks = ["supervised"]\n')
    monkeypatch.setenv("SITESEG_POLICY", str(file))
    monkeypatch.setenv(APPROVED, "0" * 64)
    with pytest.raises(UserError, match=r"rule 'tasks' is supervised; this run has 'unsupervised'"):
        run(local_grid(4), tiny_config(scenes, tmp_path / "one", 4, rounds=1))
    monkeypatch.delenv(APPROVED)
    with pytest.raises(UserError, match=r"rule 'code'.*client serve"):
        run(local_grid(4), tiny_config(scenes, tmp_path / "two", 4, rounds=1))
    file.write_text('code = "any"\ntasks = ["unsupervised"]\n')
    assert len(metrics(run(local_grid(4), tiny_config(scenes, tmp_path / "three", 4, rounds=1)))) == 1
