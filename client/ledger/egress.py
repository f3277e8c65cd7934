"""What left this site, when, and how many bytes?

Every reply is written to ``egress.jsonl`` in the site's state folder before it is handed to the network.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import IO

from common.errors import UserError


def record_egress(
    state_dir: Path, *, run: str, round_number: int, action: str, sizes: dict[str, int]
) -> None:
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
        with path.open("a+b") as ledger:
            ledger.write((_missing_newline(ledger) + line + "\n").encode())
            ledger.flush()
            os.fsync(ledger.fileno())
    except OSError as error:
        raise UserError(
            f"Cannot write the egress ledger {path} ({error.strerror}); nothing was sent."
        ) from error


def _missing_newline(ledger: IO[bytes]) -> str:
    """Return what ends the last line of a ledger that a crash cut off, so that the next one is whole."""
    end = ledger.seek(0, os.SEEK_END)
    if not end:
        return ""
    ledger.seek(end - 1)
    return "" if ledger.read(1) == b"\n" else "\n"


def read_egress(state_dir: Path) -> list[dict[str, object]]:
    """Return the ledger's lines; a line that a crash cut off is left out."""
    path = state_dir / "egress.jsonl"
    if not path.is_file():
        raise UserError(
            f"{path} does not exist: nothing has left this site yet, or this is not its state folder."
        )
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines
