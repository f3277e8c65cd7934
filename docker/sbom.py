#!/usr/bin/env python3
"""Writes what the images hold as a CycloneDX list (SBOM): names, versions and SHA-256 of the lock file.

    python docker/sbom.py > sbom.json

Torch and torchvision come from an index that is chosen at build time, so they stand there without a hash.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent


def components(text: str) -> list[dict[str, Any]]:
    """Return one component for each package of a requirements file, with the hashes that follow it."""
    found = []
    for block in re.split(r"\n(?=\S)", text):
        named = re.match(r"([\w.-]+)==([\w.+-]+)", block)
        if named is None:
            continue
        name, version = named.groups()
        component = {
            "type": "library",
            "name": name,
            "version": version,
            "purl": f"pkg:pypi/{name}@{version}",
        }
        hashes = [
            {"alg": "SHA-256", "content": digest} for digest in re.findall(r"sha256:([0-9a-f]{64})", block)
        ]
        found.append(component | ({"hashes": hashes} if hashes else {}))
    return found


def bill(folder: Path = FOLDER) -> dict[str, Any]:
    """Return the whole list as JSON values."""
    texts = [(folder / name).read_text(encoding="utf-8") for name in ("requirements.lock", "torch.txt")]
    listed = [component for text in texts for component in components(text)]
    return {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "components": listed}


if __name__ == "__main__":
    json.dump(bill(), sys.stdout, indent=1)
