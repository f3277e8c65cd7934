"""Certificates and keys of a federation: makes an authority, the server's certificate and a key pair per site.

    python docker/certs.py server --out certificates --name server.example.org --name 192.0.2.7
    python docker/certs.py site --out certificates hospital-a
    python docker/certs.py show --out certificates

Made are an authority of the federation's own, a certificate for the server with every name and address under
which sites reach it, and one key pair per site. Every folder goes to exactly one party:

    authority/   ca.key             stays with the operator, best offline
    server/      server.key .crt    to the server
    sites/NAME/  site.key ca.crt    to that site (or is made there, and only NAME.pub is sent)
    public/      ca.crt NAME.pub    no secrets

What exists is never overwritten; only `server --renew` replaces the server's certificate.
"""

from __future__ import annotations

import argparse
import ipaddress
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # it runs from a checkout that need not be installed

from common.errors import UserError
from common.system.atomic import atomic_write_bytes

LOOPBACK = ("localhost", "127.0.0.1")  # the server's own processes and the operator come this way
SITE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
HOST_NAME = re.compile(
    r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*"
)
AUTHORITY_DAYS = 3650
SERVER_DAYS = 397
CLOCK_SKEW = timedelta(hours=1)  # a site whose clock is a little slow still accepts a new certificate


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Encode a key the way TLS servers read it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def alternative_names(names: Sequence[str]) -> list[x509.GeneralName]:
    """Sort names and addresses into what a certificate distinguishes; loopback is always among them."""
    found: list[x509.GeneralName] = []
    for name in dict.fromkeys([*names, *LOOPBACK]):
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
            continue
        except ValueError:
            pass
        if not HOST_NAME.fullmatch(name) or re.fullmatch(r"[0-9.]+", name):
            raise UserError(
                f"{name!r} is neither a host name nor an address; give it as sites write it, without a port."
            )
        found.append(x509.DNSName(name))
    return found


def make_certificate(
    common_name: str,
    key: ec.EllipticCurvePrivateKey,
    start: datetime,
    end: datetime,
    issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None = None,
    names: Sequence[x509.GeneralName] = (),
) -> x509.Certificate:
    """Make an authority (without ``issuer``: signed by itself) or a server certificate."""
    authority = issuer is None
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    signer = key if issuer is None else issuer[1]
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer[0].subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(
            x509.BasicConstraints(ca=authority, path_length=0 if authority else None), critical=True
        )
        .add_extension(
            x509.KeyUsage(
                digital_signature=not authority,
                key_cert_sign=authority,
                crl_sign=authority,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    if not authority:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        builder = builder.add_extension(usage, critical=False)
    return builder.sign(signer, hashes.SHA256())


def read_certificate(path: Path) -> x509.Certificate:
    """Read a PEM certificate."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no certificate ({error}); remove it to have it made anew.") from None


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a private key that `private_pem` wrote."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is no private key ({error}); start in a new folder.") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UserError(f"{path} holds no elliptic-curve key; start in a new folder.")
    return key


def open_authority(folder: Path, now: datetime) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Return the federation's authority; the first call makes it."""
    key_path, certificate_path = folder / "authority" / "ca.key", folder / "public" / "ca.crt"
    if certificate_path.exists() and not key_path.exists():
        raise UserError(
            f"{certificate_path} is there but {key_path} is not; bring the authority's key, "
            "or start in a new folder."
        )
    if key_path.exists():
        key = load_key(key_path)
        if certificate_path.exists():
            certificate = read_certificate(certificate_path)
            if certificate.public_key() != key.public_key():
                raise UserError(f"{certificate_path} does not belong to {key_path}.")
            return certificate, key
    else:
        key = ec.generate_private_key(ec.SECP384R1())
        atomic_write_bytes(key_path, private_pem(key), private=True)
    end = now + timedelta(days=AUTHORITY_DAYS)
    certificate = make_certificate("Federation authority", key, now - CLOCK_SKEW, end)
    atomic_write_bytes(certificate_path, certificate.public_bytes(serialization.Encoding.PEM))
    return certificate, key


def make_server(folder: Path, names: Sequence[str], days: int = SERVER_DAYS, renew: bool = False) -> str:
    """Make the server's key and certificate below ``folder``; return what was done, in a sentence."""
    if not 1 <= days <= AUTHORITY_DAYS:
        raise UserError(f"--days is {days}; expected 1 to {AUTHORITY_DAYS}.")
    now = datetime.now(UTC)
    wanted = alternative_names(names)
    key_path, certificate_path = folder / "server" / "server.key", folder / "server" / "server.crt"
    if key_path.exists() and certificate_path.exists() and not renew:
        certificate = read_certificate(certificate_path)
        if load_key(key_path).public_key() != certificate.public_key():  # a crash between the two files
            raise UserError(f"{certificate_path} does not belong to {key_path}; add --renew.")
        if certificate.not_valid_after_utc <= now:
            raise UserError(f"{certificate_path} has expired; add --renew.")
        if set(san(certificate)) != {str(name.value) for name in wanted}:
            raise UserError(
                f"{certificate_path} is for {', '.join(san(certificate))}; add --renew to replace it."
            )
        return f"{certificate_path} is valid until {certificate.not_valid_after_utc:%Y-%m-%d}; left as it is"
    authority, authority_key = open_authority(folder, now)
    end = min(now + timedelta(days=days), authority.not_valid_after_utc)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = make_certificate(
        "Federation server", key, now - CLOCK_SKEW, end, (authority, authority_key), wanted
    )
    atomic_write_bytes(key_path, private_pem(key), private=True)
    atomic_write_bytes(certificate_path, certificate.public_bytes(serialization.Encoding.PEM))
    copy_authority(folder, folder / "server")
    return f"{certificate_path} is valid until {end:%Y-%m-%d} for {', '.join(san(certificate))}"


def make_site(folder: Path, name: str) -> str:
    """Make a site's key pair, in the form in which Flower reads it; return what was done, in a sentence."""
    if not SITE_NAME.fullmatch(name):
        raise UserError(
            f"{name!r} is no name for a site; expected up to 64 letters, digits, dots, dashes or underscores."
        )
    key_path, public_path = folder / "sites" / name / "site.key", folder / "public" / f"{name}.pub"
    if key_path.exists():
        key = serialization.load_ssh_private_key(key_path.read_bytes(), None)
        done = f"{key_path} was there already; left as it is"
    else:
        if public_path.exists():
            raise UserError(f"{public_path} is of a key made elsewhere; choose another name.")
        key = ec.generate_private_key(ec.SECP384R1())
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
        atomic_write_bytes(key_path, secret, private=True)
        done = f"{key_path} stays at the site; {public_path} goes to the server's operator"
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    atomic_write_bytes(public_path, public + f" {name}\n".encode())
    copy_authority(folder, key_path.parent)
    return done


def copy_authority(folder: Path, target: Path) -> None:
    """Put the authority's certificate where a party needs it; a site that makes its own key has none yet."""
    source = folder / "public" / "ca.crt"
    if source.exists():
        atomic_write_bytes(target / "ca.crt", source.read_bytes())


def san(certificate: x509.Certificate) -> list[str]:
    """Return the names and addresses a certificate is for."""
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return [str(name.value) for name in extension.value]


def show(folder: Path) -> str:
    """Describe what lies in a folder."""
    lines = []
    now = datetime.now(UTC)
    for path in (folder / "public" / "ca.crt", folder / "server" / "server.crt"):
        if path.exists():
            certificate = read_certificate(path)
            left = (certificate.not_valid_after_utc - now).days
            names = "" if path.name == "ca.crt" else f", for {', '.join(san(certificate))}"
            lines.append(f"{path}: {'EXPIRED' if left < 0 else f'{left} days left'}{names}")
    lines += [f"{path}: site {path.stem}" for path in sorted((folder / "public").glob("*.pub"))]
    if not lines:
        raise UserError(f"{folder} holds no certificates; make them with `certs.py server --name HOST`.")
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    """Describe the command."""
    parser = argparse.ArgumentParser(
        prog="certs.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    server = commands.add_parser("server", help="the authority (once) and the server's certificate")
    server.add_argument(
        "--name", action="append", default=[], metavar="HOST", help="name or address; repeatable"
    )
    server.add_argument("--days", type=int, default=SERVER_DAYS, help="validity (default: %(default)s)")
    server.add_argument("--renew", action="store_true", help="replace the server's key and certificate")
    site = commands.add_parser("site", help="a key pair for each site named")
    site.add_argument("names", nargs="+", metavar="NAME")
    shown = commands.add_parser("show", help="names and expiry of what is there")
    for command in (server, site, shown):
        command.add_argument(
            "--out", type=Path, default=Path("certificates"), metavar="DIR", help="default: %(default)s"
        )
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; bad input gives one sentence and exit code 2."""
    arguments = build_parser().parse_args(words)
    try:
        if arguments.command == "server":
            print(make_server(arguments.out, arguments.name, arguments.days, arguments.renew))
        elif arguments.command == "site":
            for name in arguments.names:
                print(make_site(arguments.out, name))
        else:
            print(show(arguments.out))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: Cannot use {error.filename}: {error.strerror}; choose another --out.", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
