"""Where do tests find real images and weights, and how are they skipped where there are none?"""

from __future__ import annotations

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
