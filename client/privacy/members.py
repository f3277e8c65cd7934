"""The key by which a site is known in secure sums, and the site's own list of the federation's members.

The key is the one that is registered at the server, where the site knows its file (setting ``key``); else one that is
made once and lies in the state folder. The list (setting ``members``) is a text file that the site got from the others,
not from the server: a line for each member with its name and its key's fingerprint as ``ssh-keygen -l`` prints it. A
line ``at-least N`` refuses sums of fewer sites.

    # name   fingerprint
    at-least 5
    clinic-a SHA256:0b3Xk...
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from client.privacy.secure_state import Secrets
from client.site import SiteConfig
from common import wire
from common.errors import UserError
from common.privacy.binding import CURVE, Announcement, fingerprint, private_key, public_hex
from common.system.atomic import atomic_write_bytes

_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")


@dataclass(frozen=True)
class Members:
    """Fingerprints by name, and the fewest sites of a sum."""

    fingerprints: Mapping[str, str]
    at_least: int = 0


def identity_key(site: SiteConfig) -> ec.EllipticCurvePrivateKey:
    """Return the key by which other sites know this one; makes one where none was given."""
    path = site.key or site.state_dir / site.name / "identity.pem"
    try:
        if site.key is None and not path.exists():
            encoding = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH
            made = ec.generate_private_key(CURVE).private_bytes(*encoding, serialization.NoEncryption())
            atomic_write_bytes(path, made, private=True)
        found = serialization.load_ssh_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm):
        found = None
    if not isinstance(found, ec.EllipticCurvePrivateKey):
        raise UserError(
            "This site's own key cannot be read; a secure sum needs the OpenSSH file of an elliptic-curve key without "
            "passphrase (site setting 'key')."
        )
    return found


def read_members(path: Path) -> Members:
    """Read a list of members; raises `UserError` with the line that is wrong."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise UserError(
            "This site's list of members cannot be read; mend the site setting 'members'."
        ) from None
    found: dict[str, str] = {}
    at_least = 0
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) == 2 and words[0] == "at-least" and words[1].isdigit():
            at_least = int(words[1])
        elif len(words) == 2 and _FINGERPRINT.fullmatch(words[1]) and words[0] not in found:
            found[words[0]] = words[1]
        else:
            raise UserError(
                f"Line {number} of this site's list of members is no name with a fingerprint (SHA256: and 43 "
                "characters), or repeats a name; mend it."
            )
    return Members(found, at_least)


def _check_members(site: SiteConfig, roster: Mapping[str, Announcement]) -> None:
    """Compare what the server says of the members with this site's own list, where it has one; raises `UserError`."""
    if site.members is None:
        return
    known = read_members(site.members)
    for name, announced in sorted(roster.items()):
        if known.fingerprints.get(name) != fingerprint(announced.identity):
            raise UserError(
                f"The server names a member {name} whose key is not the one in this site's list of members; this site "
                "takes no part in the sum."
            )
    if len(roster) < known.at_least:
        raise UserError(
            f"The server asks for a sum of {len(roster)} sites; this site's list of members wants {known.at_least}."
        )


def checked_roster(task: wire.Task, kept: Secrets, site: SiteConfig) -> dict[str, Announcement]:
    """Return the announcements that the server passed on; raises `UserError` for what this site can tell is wrong."""
    try:
        said = json.loads(str(task.options["secure.roster"]))
        roster = {
            str(name): Announcement(
                exponent=int(one["exponent"]),
                **{key: str(one[key]) for key in ("mask", "cipher", "identity", "signature")},
            )
            for name, one in said.items()
        }
    except (KeyError, ValueError, TypeError, AttributeError):
        raise UserError(
            "The server's list of sites cannot be read; this site takes no part in the sum."
        ) from None
    keys = [key for one in roster.values() for key in (one.mask, one.cipher)]
    mine = [public_hex(private_key(key)) for key in (kept.mask_key, kept.cipher_key)]
    own = roster.get(site.name)
    # a server that swaps keys, or lists one site under several names, could open the masks
    if own is None or [own.mask, own.cipher] != mine or len(set(keys)) < len(keys):
        raise UserError(
            f"The server's list of {len(roster)} sites does not hold this site's own keys, or a key twice; this site "
            "takes no part in the sum."
        )
    if len({one.identity for one in roster.values()}) < len(roster):
        raise UserError("The server's list names one site twice; this site takes no part in the sum.")
    for name, one in sorted(roster.items()):
        fault = one.fault(kept.session, name)
        if fault:
            raise UserError(
                f"The server's list is wrong about site {name}: {fault}; this site takes no part."
            )
    _check_members(site, roster)
    return roster
