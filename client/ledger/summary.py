"""How does a site's engineer see what has left the building?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client.ledger.egress import read_egress
from common.errors import UserError


@dataclass
class Account:
    """Messages of one kind: how many, how many bytes by record, from when to when."""

    messages: int = 0
    total: int = 0
    first: str = ""
    last: str = ""
    records: dict[str, int] = field(default_factory=dict)

    def add(self, line: Mapping[str, Any]) -> None:
        """Count one line of the ledger."""
        self.messages += 1
        self.total += int(line["total"])
        when = str(line["time"])
        self.first = min(self.first or when, when)
        self.last = max(self.last, when)
        for name, size in dict(line["bytes"]).items():
            self.records[name] = self.records.get(name, 0) + int(size)


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
    ledgers = [state_dir] if (state_dir / "egress.jsonl").is_file() else []
    ledgers = ledgers or sorted(path.parent for path in state_dir.glob("*/egress.jsonl"))
    return "\n\n".join(_table(folder) for folder in ledgers or [state_dir])


def _table(folder: Path) -> str:
    lines = read_egress(folder)
    try:
        accounts = summarise(lines)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder / 'egress.jsonl'} is no egress ledger of this program ({error!r}); give a site's state folder."
        ) from None
    width = max(len(name) for name in ("action", *accounts))
    text = [f"{folder.name}", f"{'action':<{width}}  {'messages':>8}  {'bytes':>14}  {'first':<24}  last"]
    for name, account in accounts.items():
        text.append(
            f"{name:<{width}}  {account.messages:>8}  {account.total:>14,}  {account.first:<24}  {account.last}"
        )
    records = sorted(accounts["total"].records.items(), key=lambda pair: -pair[1])
    text.append("of which " + ", ".join(f"{name} {size:,}" for name, size in records) + " bytes")
    return "\n".join(text)
