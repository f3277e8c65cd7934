"""Binds a secure sum to what was asked: hashes that sites sign, and compare before a total is opened.

Sites see only what the server shows them. So each signs, with a key that outlives the sum, the fresh keys that it sends
and later what it was asked: model, options, settings, round, members, survivors. A site gives no share before
enough others have signed the same (the consistency round of Bonawitz et al. 2017).
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from functools import lru_cache

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

# The curve of the keys of one sum; keys that outlive it may be on others.
CURVE = ec.SECP256R1()
PUBLIC_BYTES = 33  # a compressed point of it
# curves by the length of a compressed point
_CURVES: dict[int, ec.EllipticCurve] = {33: CURVE, 49: ec.SECP384R1(), 67: ec.SECP521R1()}


@dataclass(frozen=True)
class Announcement:
    """What a site says of itself when a sum begins; points compressed, all bytes as hex.

    ``mask`` and ``cipher`` are fresh keys, ``identity`` is the lasting one that signs. ``exponent`` is the power of
    two that its features stay below, 0 where nobody asked.
    """

    mask: str
    cipher: str
    identity: str
    exponent: int
    signature: str

    def statement(self, session: str, site: str) -> bytes:
        """Return what the signature is for."""
        return hashed("keys", session, site, self.mask, self.cipher, self.identity, str(self.exponent))

    def fault(self, session: str, site: str) -> str | None:
        """Return what is wrong with it in one phrase, or None."""
        for name, text in (("mask", self.mask), ("cipher", self.cipher)):
            if not is_point(text):
                return f"its {name} key is no point of the curve"
        if not is_signed(self.identity, self.statement(session, site), self.signature):
            return "its keys are not signed by the key that it calls its own"
        return None


def hashed(*parts: str) -> bytes:
    """Return the SHA-256 of several texts; no two lists of texts give the same bytes."""
    return hashlib.sha256(json.dumps(parts).encode()).digest()


def session_of(run_key: str, number: int, label: str) -> str:
    """Return the name of one sum among all: run, round, and the exchange's label."""
    return hashed("session", run_key, str(number), label).hex()


def roster_hash(roster: Mapping[str, Announcement]) -> str:
    """Return the hash of all announcements, which also draws the graph."""
    return hashed("roster", json.dumps({name: astuple(one) for name, one in sorted(roster.items())})).hex()


def received_hash(groups: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """Return the hash of arrays by group and name, as they were received."""
    found = hashlib.sha256()
    for group, arrays in sorted(groups.items()):
        for key, value in sorted(arrays.items()):
            found.update(hashed(group, key, str(value.dtype), str(value.shape)))
            found.update(np.ascontiguousarray(value).tobytes())
    return found.hexdigest()


def survivors_statement(context: str, survivors: Iterable[str]) -> bytes:
    """Return what a site signs before a total is opened: what it was asked, and who is in the total."""
    return hashed("survivors", context, *sorted(survivors))


def private_hex(key: ec.EllipticCurvePrivateKey) -> str:
    """Return the private number of a key of one sum."""
    return key.private_numbers().private_value.to_bytes(32, "big").hex()


def private_key(text: str) -> ec.EllipticCurvePrivateKey:
    """Undo `private_hex`; raises ValueError for a number that is no key."""
    return ec.derive_private_key(int(text, 16), CURVE)


def public_hex(key: ec.EllipticCurvePrivateKey) -> str:
    """Return the public half of a key as a compressed point."""
    return key.public_key().public_bytes(_X962, serialization.PublicFormat.CompressedPoint).hex()


_X962 = serialization.Encoding.X962


@lru_cache(maxsize=1 << 13)
def _point(text: str) -> ec.EllipticCurvePublicKey:
    data = bytes.fromhex(text)
    if len(data) not in _CURVES:
        raise ValueError(f"a point of {len(data)} bytes")
    return ec.EllipticCurvePublicKey.from_encoded_point(_CURVES[len(data)], data)


def is_point(text: str) -> bool:
    """Tell whether hex digits are a point of the curve of a sum's keys."""
    try:
        return len(text) == 2 * PUBLIC_BYTES and _point(text) is not None
    except ValueError:
        return False


def agree(private: ec.EllipticCurvePrivateKey, public: str) -> bytes:
    """Return the 32 bytes on which two sites agree (Diffie and Hellman's method, HKDF)."""
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    shared = private.exchange(ec.ECDH(), _point(public))
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=b"secure sum").derive(shared)


def signed(key: ec.EllipticCurvePrivateKey, statement: bytes) -> str:
    """Return the signature of a statement as hex."""
    return key.sign(statement, ec.ECDSA(hashes.SHA256())).hex()


# simulated sites share a process: each signature is then checked once, not by every site
@lru_cache(maxsize=1 << 14)
def is_signed(identity: str, statement: bytes, signature: str) -> bool:
    """Tell whether a signature is that of the key ``identity`` (a compressed point) for the statement."""
    try:
        _point(identity).verify(bytes.fromhex(signature), statement, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError):
        return False
    return True


def fingerprint(identity: str) -> str:
    """Return the fingerprint of a key as ``ssh-keygen -l`` prints it: SHA256 and base64 without padding."""
    kind = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    blob = base64.b64decode(_point(identity).public_bytes(*kind).split()[1])
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
