"""At which addresses do a process and all that it started take connections? (Linux)"""

from __future__ import annotations

import contextlib
import ipaddress
import re
from pathlib import Path

_LISTEN = "0A"


def family(process: int) -> set[int]:
    """Return the ids of a process and of all processes below it."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found, grown = {process}, True
    while grown:
        more = {child for child, parent in parents.items() if parent in found} - found
        found, grown = found | more, bool(more)
    return found


def listening(process: int) -> set[str]:
    """Return the addresses (without ports) at which the family of a process listens, as text."""
    inodes = set()
    for member in family(process):
        with contextlib.suppress(OSError):
            for handle in Path(f"/proc/{member}/fd").iterdir():
                with contextlib.suppress(OSError):
                    inodes |= set(re.findall(r"socket:\[(\d+)\]", str(handle.readlink())))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == _LISTEN and words[9] in inodes:
                found.add(_address(words[1].partition(":")[0]))
    return found


def _address(text: str) -> str:
    """Read an address as the kernel writes it: words of four bytes, each turned round."""
    words = [bytes.fromhex(text[i : i + 8])[::-1] for i in range(0, len(text), 8)]
    address = ipaddress.ip_address(b"".join(words))
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)
