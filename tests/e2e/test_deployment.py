"""Plain SuperNodes, a process for each message: the model of one process, and ledgers that agree with the server."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.checkpoint import load_checkpoint
from tests.support.deployed_runs import NAMES, SITES, check_same, egress, in_one_process, run_config
from tests.support.deployment import Deployment
from tests.support.federation import metrics

# fifteen processes that import everything; tests/e2e/test_tls.py asks the same of two encrypted sites
pytestmark = [pytest.mark.net, pytest.mark.idle]


def test_three_sites_train_over_grpc(tmp_path: Path, scenes: Path) -> None:
    run_dir, cache = tmp_path / "run", tmp_path / "cache"
    settings = {"rounds": 2, "centroids__polish_passes": 1}
    with Deployment(tmp_path / "net") as net:
        net.superlink()
        for index in range(SITES):
            words = f'shard="{scenes}/site-{index}.jsonl" cache="{cache}/{index}" threads=1'
            net.supernode(f"site-{index}", f'site="{NAMES[index]}" {words}')
        found = net.wait(net.submit(run_config(scenes, run_dir, **settings)), 300)
        assert found == "finished:completed", net.everything()
    lines = metrics(run_dir)
    assert [line["round"] for line in lines] == [1, 2]
    for line in lines:
        assert line["sites"] == sorted(line["bytes_up"]) == list(NAMES)
        assert line["quarantined"] == {} and 0 < line["miou"] < 1
    check_same(lines, in_one_process(scenes, tmp_path / "apart", **settings))
    assert load_checkpoint(run_dir).round == 2
    assert (run_dir / "report.html").is_file()
    # the ledger of a site and the server's account agree to the byte
    trained = [
        entry["total"] for entry in egress(cache / "0") if entry["round"] == 1 and entry["action"] == "train"
    ]
    assert trained == [lines[0]["bytes_up"][NAMES[0]]]
