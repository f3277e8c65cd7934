"""Where do tests find real images and weights, and how are they skipped where there are none?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real data sets that lie beside the checkout."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("no real images beside the checkout (../shared/data)")
    return folder


@pytest.fixture(scope="session")
def shared_weights() -> Path:
    """Folder of the real pretrained weights that lie beside the checkout."""
    folder = SHARED / "weights"
    if not folder.is_dir():
        pytest.skip("no pretrained weights beside the checkout (../shared/weights)")
    return folder


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shards folder of four small synthetic sites; read-only, its feature caches are shared by all tests."""
    from tests.support.scenes import write_synthetic

    folder = tmp_path_factory.mktemp("scenes")
    write_synthetic(folder, sites=4, images_per_site=10, eval_images=6, size=(72, 96), seed=0)
    return folder


@pytest.fixture(scope="module")
def narrow() -> Iterator[None]:
    """Networks of a fortieth of the parameters, for files that use this fixture."""
    from tests.support.small_network import small_network

    with small_network():
        yield


SHARED_DEPLOYMENT = ("network_deployment", "secure", "warm")
"""The files of tests/e2e that share the deployment of its conftest: one worker runs them, in this order."""


def _shares_deployment(name: str) -> bool:
    return Path(name).stem.removeprefix("test_") in SHARED_DEPLOYMENT and "e2e" in name


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Give each file to one worker, and the files that share a deployment to the same."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            name: str = super()._split_scope(nodeid)
            return "tests/e2e" if _shares_deployment(name) else name

    return Files(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Spread files of real processes, which mostly wait, among the others, which compute; two first, none last.

    So workers that wait leave their core to those that compute (with `--no-loadscope-reorder` files are handed
    out in this order).
    """
    files: dict[str, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.nodeid.partition("::")[0], []).append(item)
    waiting = [name for name, found in files.items() if found[0].get_closest_marker("net")]
    waiting.sort(key=lambda name: ("fault" not in name, not _shares_deployment(name)))  # the longest
    computing = [name for name in files if name not in waiting]
    share = 0.75 * len(computing) / max(len(waiting) - 1, 1)
    places = {name: (index - 1) * share for index, name in enumerate(waiting)}
    places |= {name: float(index) for index, name in enumerate(computing)}
    items[:] = [item for name in sorted(files, key=lambda name: places[name]) for item in files[name]]
