"""Are the certificates and keys that the command makes valid, narrow and safe from being overwritten?"""

from __future__ import annotations

import contextlib
import socket
import ssl
import stat
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from common.errors import UserError
from tests.conftest import ROOT
from tests.support.deployment import free_port
from tests.support.scripts import load_script

certs = load_script("certs")


def test_a_server_certificate_holds_the_names_given_and_loopback(tmp_path: Path) -> None:
    certs.make_server(tmp_path, ["server.example.org", "192.0.2.7", "2001:db8::7"], days=30)
    certificate = certs.read_certificate(tmp_path / "server" / "server.crt")
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["server.example.org", "localhost"]
    found = {str(address) for address in names.get_values_for_type(x509.IPAddress)}
    assert found == {"192.0.2.7", "2001:db8::7", "127.0.0.1"}
    assert (certificate.not_valid_after_utc - datetime.now(UTC)).days == 29
    assert certificate.not_valid_before_utc < datetime.now(UTC)
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def handshake(folder: Path, authority: Path, name: str) -> None:
    """Make one TLS connection on loopback; raises `ssl.SSLError` where the client refuses."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "server" / "server.crt", folder / "server" / "server.key")
    client = ssl.create_default_context(cafile=str(authority / "public" / "ca.crt"))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    with socket.create_server(("127.0.0.1", free_port())) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                server.wrap_socket(connection, server_side=True).close()

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            with (
                socket.create_connection(listener.getsockname(), 10) as raw,
                client.wrap_socket(raw, server_hostname=name),
            ):
                pass
        finally:
            thread.join(10)


def test_tls_accepts_the_names_given_and_no_other(tmp_path: Path) -> None:
    certs.make_server(tmp_path / "own", ["server.example.org"])
    certs.make_server(tmp_path / "other", ["server.example.org"])
    for name in ("server.example.org", "localhost", "127.0.0.1"):
        handshake(tmp_path / "own", tmp_path / "own", name)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(tmp_path / "own", tmp_path / "own", "elsewhere.example.org")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path / "own", tmp_path / "other", "server.example.org")


def test_a_key_pair_is_what_flower_reads(tmp_path: Path) -> None:
    from flwr.cli.supernode.register import try_load_public_key

    certs.make_site(tmp_path, "hospital-a")
    private = load_ssh_private_key((tmp_path / "sites/hospital-a/site.key").read_bytes(), None)
    public_path = tmp_path / "public" / "hospital-a.pub"
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert load_ssh_public_key(public_path.read_bytes()) == private.public_key()
    assert b"BEGIN PUBLIC KEY" in try_load_public_key(public_path)


def test_only_the_owner_reads_private_keys_and_every_party_has_only_its_own(tmp_path: Path) -> None:
    certs.make_server(tmp_path, [])
    certs.make_site(tmp_path, "a")
    keys = sorted(path for path in tmp_path.rglob("*.key"))
    assert [str(path.relative_to(tmp_path)) for path in keys] == [
        "authority/ca.key",
        "server/server.key",
        "sites/a/site.key",
    ]
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}
    assert sorted(path.name for path in (tmp_path / "sites" / "a").iterdir()) == ["ca.crt", "site.key"]
    assert b"PRIVATE" not in b"".join(path.read_bytes() for path in (tmp_path / "public").iterdir())


def test_nothing_is_overwritten_and_renewing_keeps_the_authority(tmp_path: Path) -> None:
    def contents() -> dict[str, bytes]:
        return {str(p.relative_to(tmp_path)): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    certs.make_server(tmp_path, ["a.example.org"])
    certs.make_site(tmp_path, "a")
    before = contents()
    assert "left as it is" in certs.make_server(tmp_path, ["a.example.org"])
    assert "left as it is" in certs.make_site(tmp_path, "a")
    assert contents() == before
    with pytest.raises(UserError, match="--renew"):
        certs.make_server(tmp_path, ["b.example.org"])
    certs.make_server(tmp_path, ["b.example.org"], renew=True)
    changed = {name for name, data in contents().items() if data != before[name]}
    assert changed == {"server/server.key", "server/server.crt"}
    handshake(tmp_path, tmp_path, "b.example.org")


def test_a_key_and_a_certificate_of_two_makings_are_noticed(tmp_path: Path) -> None:
    certs.make_server(tmp_path, [])
    (tmp_path / "server/server.key").write_bytes(certs.private_pem(ec.generate_private_key(ec.SECP256R1())))
    with pytest.raises(UserError, match="does not belong"):
        certs.make_server(tmp_path, [])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["server", "--name", "http://server"], "neither a host name nor an address"),
        (["server", "--name", "server:9092"], "without a port"),
        (["server", "--name", "300.1.1.1"], "neither a host name nor an address"),
        (["server", "--days", "0"], "--days is 0"),
        (["site", "../b"], "no name for a site"),
        (["site", "two words"], "no name for a site"),
        (["show"], "holds no certificates"),
    ],
)
def test_bad_input_gets_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert certs.main([*words, "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and sentence in said and said.count("\n") == 1
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_the_shell_command_is_the_python_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [str(ROOT / "docker" / "certs.sh"), "site", "a", "--out", str(tmp_path)],
        env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "public" / "a.pub").is_file()
