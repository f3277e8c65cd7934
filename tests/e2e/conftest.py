"""The deployment that several files share: a SuperLink and three warm sites, which take seconds to start."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.deployed_runs import NAMES
from tests.support.deployment import Deployment
from tests.support.warm import start_warm_site


@pytest.fixture(scope="session")
def net(tmp_path_factory: pytest.TempPathFactory, scenes: Path) -> Iterator[Deployment]:
    """The sites are ``warm-0`` to ``warm-2`` by their processes, and have the names of `NAMES`."""
    folder = tmp_path_factory.mktemp("warm")
    with Deployment(folder / "net") as deployment:
        deployment.superlink()
        for index, name in enumerate(NAMES):
            shard, cache = scenes / f"site-{index}.jsonl", folder / "cache" / name
            start_warm_site(deployment, f"warm-{index}", name, shard, cache)
        yield deployment


@pytest.fixture(scope="session")
def caches(net: Deployment) -> Path:
    """Where those sites keep their features and ledgers, each in a folder of its name."""
    return net.folder.parent / "cache"
