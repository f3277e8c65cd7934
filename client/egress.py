"""What left this site, when, and how many bytes?

Every reply is written to ``egress.jsonl`` in the site's state folder before it is handed to the network.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from common.errors import UserError


def record_egress(state_dir: Path, *, run: str, round_number: int, action: str, sizes: dict[str, int]) -> None:
    """Append one line to the ledger: ``sizes`` maps each record that leaves to its bytes.

    A site that cannot keep its ledger does not answer: raises `UserError`.
    """
    line = json.dumps(
        {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "run": run,
            "round": round_number,
            "action": action,
            "bytes": sizes,
            "total": sum(sizes.values()),
        }
    )
    path = state_dir / "egress.jsonl"
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as ledger:
            ledger.write(line + "\n")
            ledger.flush()
            os.fsync(ledger.fileno())
    except OSError as error:
        raise UserError(f"Cannot write the egress ledger {path} ({error.strerror}); nothing was sent.") from error


def read_egress(state_dir: Path) -> list[dict[str, object]]:
    """Return the ledger's lines; a last line cut off by a crash is left out."""
    path = state_dir / "egress.jsonl"
    if not path.is_file():
        raise UserError(f"{path} does not exist: nothing has left this site yet, or this is not its state folder.")
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines
