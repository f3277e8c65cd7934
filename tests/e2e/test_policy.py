"""Does a site of a real deployment refuse an application that it has not approved, before it imports any of it?"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support.deployed_runs import SITES, run_config
from tests.support.deployment import Deployment
from tests.support.federation import metrics
from tests.support.warm import start_warm_site

pytestmark = [pytest.mark.net, pytest.mark.idle]


def client(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "client", *words], cwd=ROOT, check=True, timeout=60)


def test_a_site_runs_only_what_it_approved(net: Deployment, tmp_path: Path, scenes: Path) -> None:
    policy, name = tmp_path / "policy.toml", "careful"
    client("policy", str(policy), "--write")
    cache = tmp_path / "cache"
    start_warm_site(net, name, name, scenes / "site-3.jsonl", cache, "--insecure", "--policy", str(policy))

    def refused(run_dir: Path) -> tuple[list[str], str]:
        settings = {"rounds": 1, "preset": "fuss-clean", "sites__expected": SITES + 1}
        found = net.wait(net.submit(run_config(scenes, run_dir, **settings)), 300)
        assert found == "finished:completed", net.everything()
        (line,) = metrics(run_dir)
        return list(line["sites"]), str(line["quarantined"].get(name, ""))

    try:
        sites, reason = refused(tmp_path / "strange")
        assert name not in sites and len(sites) == SITES
        application = re.search(r"rule 'code' is 'approved', and application ([0-9a-f]{64}) is not", reason)
        assert application is not None, reason
        assert not list(net.home(name).rglob("client/app.py"))  # nothing of it was unpacked
        assert application[1] in net.log(name)  # the site's engineer sees the hash as well

        client("approve", "--policy", str(policy), application[1])
        assert name in refused(tmp_path / "approved")[0]

        policy.write_text('tasks = ["supervised"]\n')
        sites, reason = refused(tmp_path / "other")
        assert name not in sites and "rule 'tasks' is supervised" in reason
    finally:
        net.stop(name)
