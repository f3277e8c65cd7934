#!/usr/bin/env python3
"""Health check of a container: exit code 0 if every address given answers as it should, else 1.

    health.py http://control:8000/health tcp://superlink:9092
    health.py --ca /certificates/ca.crt https://control:8000/health
    health.py http://127.0.0.1:9094/health joined://superlink:9092

``http(s)`` asks for a page, ``tcp`` connects, and ``joined`` looks for a connection that this container holds
to that address: a SuperNode answers its own health page even while it cannot reach the server, and a wrong
address shows only here. Standard library only.
"""

from __future__ import annotations

import socket
import ssl
import sys
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

SECONDS = 4.0
ESTABLISHED = "01"  # of /proc/net/tcp
TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))


def addresses(host: str, port: int) -> set[tuple[str, int]]:
    """Return the IPv4 and IPv6 addresses of a name."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return {(str(address[4][0]), port) for address in found}


def remote(field: str) -> tuple[str, int]:
    """Decode a remote address of the kernel's tables: 32-bit words in host order, then the port."""
    words, port = field.split(":")
    packed = b"".join(int(words[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(words), 8))
    if len(packed) == 16 and packed[:12] == bytes(10) + b"\xff\xff":  # IPv4 through an IPv6 socket
        packed = packed[12:]
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    return socket.inet_ntop(family, packed), int(port, 16)


def connections(tables: Iterable[Path] = TABLES) -> set[tuple[str, int]]:
    """Return where this network namespace is connected to."""
    found = set()
    for table in tables:
        if table.exists():
            for line in table.read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == ESTABLISHED:
                    found.add(remote(fields[2]))
    return found


def check(url: str, authority: str | None = None) -> None:
    """Raise `OSError` with the reason if ``url`` does not hold."""
    parts = urlsplit(url)
    if parts.scheme in ("http", "https"):
        context = ssl.create_default_context(cafile=authority) if parts.scheme == "https" else None
        with urllib.request.urlopen(url, timeout=SECONDS, context=context) as answer:
            answer.read(1)
        return
    if parts.hostname is None or parts.port is None:
        raise OSError("expected SCHEME://HOST:PORT")
    if parts.scheme == "tcp":
        socket.create_connection((parts.hostname, parts.port), SECONDS).close()
    elif parts.scheme == "joined":
        if not addresses(parts.hostname, parts.port) & connections():
            raise OSError("no connection is open to it")
    else:
        raise OSError("expected http, https, tcp or joined")


def main(words: list[str]) -> int:
    """Check all addresses; say what is wrong."""
    authority = None
    if words[:1] == ["--ca"]:
        authority, words = words[1], words[2:]
    faults = 0
    for url in words:
        try:
            check(url, authority)
        except (OSError, ValueError) as error:
            print(f"{url}: {error}")
            faults += 1
    return 1 if faults or not words else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
