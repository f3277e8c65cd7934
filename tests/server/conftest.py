"""Which models on disk do several tests of the server share?"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.checkpoints import write_network_checkpoint


@pytest.fixture(scope="session")
def clustered_network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network with two style clusters, for dark and for bright pictures; read-only."""
    return write_network_checkpoint(tmp_path_factory.mktemp("clustered"), clusters=True)
