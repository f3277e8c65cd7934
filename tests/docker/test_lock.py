"""Does the lock file hold what the images install, every file with a hash, and the SBOM the same?"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from tests.conftest import ROOT

DOCKER = ROOT / "docker"


def pinned(file: Path) -> list[str]:
    return sorted(re.findall(r"^([\w.-]+==[\w.+-]+)", file.read_text(encoding="utf-8"), re.M))


def test_the_lock_is_of_the_requirements_and_names_no_host_and_no_torch() -> None:
    text = (DOCKER / "requirements.lock").read_text(encoding="utf-8")
    assert pinned(DOCKER / "requirements.lock") == pinned(DOCKER / "requirements.txt")
    blocks = re.split(r"\n(?=\S)", text.strip())
    assert all("--hash=sha256:" in block for block in blocks), "a package without a hash"
    assert "://" not in text and not re.search(r"^torch", text, re.M)


def test_the_bill_of_materials_lists_every_package() -> None:
    spec = importlib.util.spec_from_file_location("sbom", DOCKER / "sbom.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = {f"{part['name']}=={part['version']}" for part in module.bill()["components"]}
    assert found == {*pinned(DOCKER / "requirements.txt"), *pinned(DOCKER / "torch.txt")}
