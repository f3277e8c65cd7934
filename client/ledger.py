"""The site's egress ledger: what left it, when, and how many bytes.

Every reply is written to ``egress.jsonl`` in the site's state folder before it is handed to the network.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from common.errors import UserError
from common.order import natural_key

_LEDGER = "egress.jsonl"  # named in the documents: engineers read it with tools of their own


def record_egress(
    state_dir: Path, *, run: str, round_number: int, action: str, sizes: dict[str, int]
) -> None:
    """Append one line to the ledger: ``sizes`` maps each record that leaves to its bytes.

    A site that cannot keep its ledger does not answer: raises `UserError`.
    """
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    line = {"time": now, "run": run, "round": round_number, "action": action}
    text = json.dumps(line | {"bytes": sizes, "total": sum(sizes.values())})
    path = state_dir / _LEDGER
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as ledger:
            ledger.write((_missing_newline(ledger) + text + "\n").encode())
            ledger.flush()
            os.fsync(ledger.fileno())  # before the answer leaves: a crash must not lose the line
    except OSError as error:
        raise UserError(
            f"Cannot write the egress ledger {path} ({error.strerror}); nothing was sent."
        ) from error


def _missing_newline(ledger: IO[bytes]) -> str:
    """Return what ends the last line of a ledger that a crash cut off, so that the next one is whole."""
    if not ledger.seek(0, os.SEEK_END):
        return ""
    ledger.seek(-1, os.SEEK_END)
    return "" if ledger.read(1) == b"\n" else "\n"


def read_egress(state_dir: Path) -> list[dict[str, object]]:
    """Return the ledger's lines; a line that a crash cut off is left out."""
    path = state_dir / _LEDGER
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


@dataclass
class Account:
    """Messages of one action: how many, how many bytes by record, from when to when."""

    messages: int = 0
    total: int = 0
    first: str = ""
    last: str = ""
    records: Counter[str] = field(default_factory=Counter)  # bytes by record

    def add(self, line: Mapping[str, Any]) -> None:
        """Count one line of the ledger."""
        self.messages += 1
        self.total += int(line["total"])
        when = str(line["time"])
        self.first = min(self.first or when, when)
        self.last = max(self.last, when)
        self.records.update({name: int(size) for name, size in dict(line["bytes"]).items()})


def summarise(lines: Sequence[Mapping[str, Any]]) -> dict[str, Account]:
    """Return one account per action, and one named 'total'."""
    accounts: dict[str, Account] = {}
    total = Account()
    for line in lines:
        accounts.setdefault(str(line["action"]), Account()).add(line)
        total.add(line)
    return dict(sorted(accounts.items())) | {"total": total}


def egress_text(state_dir: Path) -> str:
    """Return the ledger of a site's state folder, or of every site in it, as a table.

    Raises `UserError` where there is no ledger, or one that this program did not write.
    """
    ledgers = [state_dir] if (state_dir / _LEDGER).is_file() else []
    ledgers = ledgers or sorted(
        (path.parent for path in state_dir.glob(f"*/{_LEDGER}")), key=lambda path: natural_key(path.name)
    )
    return "\n\n".join(_table(folder) for folder in ledgers or [state_dir])


def _table(folder: Path) -> str:
    lines = read_egress(folder)
    try:
        accounts = summarise(lines)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder / _LEDGER} is no egress ledger of this program ({error!r}); give a site's state folder."
        ) from None
    width = max(len(name) for name in ("action", *accounts))
    text = [f"{folder.name}", f"{'action':<{width}}  {'messages':>8}  {'bytes':>14}  {'first':<24}  last"]
    for name, account in accounts.items():
        text.append(
            f"{name:<{width}}  {account.messages:>8}  {account.total:>14,}  {account.first:<24}  {account.last}"
        )
    records = accounts["total"].records.most_common()
    text.append("of which " + ", ".join(f"{name} {size:,}" for name, size in records) + " bytes")
    return "\n".join(text)
