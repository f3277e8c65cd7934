"""Connection to the server: checks its address, TLS, certificates, and this node's key."""

from __future__ import annotations

import re
import socket
import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from common.errors import UserError

TIMEOUT_SECONDS = 5.0  # an answer over the internet takes well below a second; silence means a firewall
SOON_DAYS = 30  # time to ask the operator for a new certificate and to hand it out
# what a TLS server of gRPC, and so the Fleet API, always agrees on; the control port (HTTP/1.1) never does
GRPC_PROTOCOL = "h2"


@dataclass(frozen=True)
class Address:
    """A host and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Read HOST:PORT or [IPV6]:PORT; raises `UserError`."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\s/\[\]]+)):(\d{1,5})", text)
    if match is None or not 0 < int(match[3]) < 65536:
        raise UserError(
            f"--server {text!r} is no address; give HOST:PORT without http://, for example example.org:9092."
        )
    return Address(match[1] or match[2], int(match[3]))


def connect(address: Address, timeout: float = TIMEOUT_SECONDS) -> socket.socket:
    """Open a TCP connection; raises `UserError` that says what stood in the way."""
    try:
        return socket.create_connection((address.host, address.port), timeout)
    except socket.gaierror:
        raise UserError(
            f"The name {address.host} is not known here; correct --server or ask who runs the network's DNS."
        ) from None
    except TimeoutError:
        raise UserError(
            f"{address} does not answer within {timeout:.0f} s; ask whether a firewall lets this site out to it."
        ) from None
    except ConnectionRefusedError:
        raise UserError(
            f"{address.host} is there but nothing listens on port {address.port}; start the server or correct the port."
        ) from None
    except OSError as error:
        raise UserError(
            f"{address} cannot be reached ({error.strerror or error}); check this site's network."
        ) from None


def shake_hands(address: Address, root_certificates: Path, timeout: float = TIMEOUT_SECONDS) -> str:
    """Open a TLS connection that the certificates must vouch for; says what was agreed on.

    Raises `UserError` also where a good certificate belongs to a port that does not speak gRPC.
    """
    context = ssl.create_default_context(cafile=str(root_certificates))
    context.set_alpn_protocols([GRPC_PROTOCOL])  # as a SuperNode would ask
    began = time.monotonic()
    try:
        with (
            connect(address, timeout) as plain,
            context.wrap_socket(plain, server_hostname=address.host) as secure,
        ):
            version, protocol = secure.version(), secure.selected_alpn_protocol()
    except ssl.SSLCertVerificationError as error:
        raise UserError(
            f"{address} shows a certificate that {root_certificates} does not vouch for ({error.verify_message}); "
            "ask the server's engineer for the right root certificate, or correct the host name."
        ) from None
    except (ssl.SSLError, ConnectionError, TimeoutError) as error:
        if getattr(error, "reason", None) == "TLSV1_ALERT_NO_APPLICATION_PROTOCOL":
            raise _wrong_port(address) from None  # some servers hang up instead of choosing nothing
        raise UserError(
            f"{address} does not speak TLS ({getattr(error, 'reason', None) or error}); "
            "ask whether the server runs with certificates, and on this port."
        ) from None
    if protocol != GRPC_PROTOCOL:
        raise _wrong_port(address)
    return (
        f"{address} speaks {version} and its certificate is good, {1000 * (time.monotonic() - began):.0f} ms"
    )


def _wrong_port(address: Address) -> UserError:
    return UserError(
        f"{address} shows a good certificate but is not the Fleet API (it does not speak gRPC); give the port "
        "that sites connect to, usually 9092."
    )


def check_certificates(file: Path, now: datetime | None = None) -> str:
    """Read the root certificates; raises `UserError` where one is unreadable, expired or not yet valid."""
    from cryptography import x509

    data = _read(file, "certificate file")
    try:
        found = x509.load_pem_x509_certificates(data)
    except ValueError:
        raise UserError(
            f"{file} holds no PEM certificate; give the root certificate that the server's engineer handed out."
        ) from None
    today = now or datetime.now(UTC)
    for certificate in found:
        name = certificate.subject.rfc4514_string() or "the certificate"
        if today > certificate.not_valid_after_utc:
            raise UserError(
                f"{name} in {file} expired on {certificate.not_valid_after_utc:%Y-%m-%d}; ask for a new one."
            )
        if today < certificate.not_valid_before_utc:
            raise UserError(
                f"{name} in {file} is not valid before {certificate.not_valid_before_utc:%Y-%m-%d}; "
                "check this machine's clock."
            )
    first_end = min(certificate.not_valid_after_utc for certificate in found)
    days = (first_end - today).days
    soon = ", which is soon" if days < SOON_DAYS else ""
    return f"{len(found)} in {file}, valid for {days} more days{soon}"


def check_key(file: Path) -> str:
    """Read the node's private key as Flower will: an OpenSSH file with an elliptic-curve key, no passphrase."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    data = _read(file, "key")
    advice = 'make one with ssh-keygen -t ecdsa -b 384 -N "" -f FILE'
    try:
        key = load_ssh_private_key(data, None)
    except TypeError:
        raise UserError(
            f"The key {file} is locked by a passphrase, which nobody will type; {advice}."
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise UserError(f"{file} is no OpenSSH private key; {advice}.") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UserError(f"The key {file} is not an elliptic-curve key, which Flower asks for; {advice}.")
    if file.stat().st_mode & 0o077:  # who has the key can take part in this site's name
        raise UserError(f"The key {file} may be read by other users; run chmod 600 on it.")
    return f"{file}, {key.curve.name}; its public half has to be registered at the server"


def _read(file: Path, what: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(
            f"The {what} {file} cannot be read ({error.strerror or error}); check the path and its permissions."
        ) from None
