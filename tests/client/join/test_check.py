"""Does the check tell a site's engineer the truth, one line at a time?"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import threading
from collections import namedtuple
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from client.__main__ import client_main as main
from client.join.check import describe_device
from client.join.connection import Address, check_certificates, check_key, connect, parse_address, shake_hands
from common.errors import UserError

SMALL = ["--set=preset=fuss-clean", "--set=local.batch=4", "--set=local.neighbours=2"]
SMALL += ["--set=model.height=33", "--set=model.width=49"]


def check(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict[str, tuple[str, str]]]:
    """Run the check; return the exit code and, by check, verdict and text."""
    code = main(["check", *SMALL, *map(str, words)])
    found = {}
    for line in capsys.readouterr().out.splitlines():
        verdict, name, text = line[:9].strip(), line[10:22].strip(), line[23:]
        if verdict in ("ok", "wrong", "left out"):
            found[name] = (verdict, text)
    return code, found


@pytest.fixture
def words(scenes: Path, tmp_path: Path) -> list[object]:
    return [
        "--shard",
        scenes / "site-0.jsonl",
        "--weights",
        "random",
        "--device",
        "cpu",
        "--cache",
        tmp_path / "c",
    ]


def test_a_good_site_is_ready_and_nothing_is_written(
    words: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = check(capsys, *words)
    assert code == 0
    assert list(found) == ["manifest", "images", "size", "device", "weights", "cache", "state", "server"]
    assert {verdict for verdict, _ in found.values()} == {"ok", "left out"}
    assert "10 images below" in found["manifest"][1] and "all 10 can be read" in found["images"][1]
    assert "features need" in found["cache"][1] and not list(tmp_path.iterdir())


def test_labels_stay_closed_unless_asked_for(
    scenes: Path,
    tmp_path: Path,
    words: list[object],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def closed(*_: object) -> None:
        raise AssertionError("a label was opened")

    monkeypatch.setattr("common.data.images.read_raw_label", closed)
    assert check(capsys, *words)[0] == 0
    with pytest.raises(AssertionError, match="a label was opened"):
        check(capsys, *words, "--labels")


def test_labels_are_checked_against_the_table(
    words: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = check(capsys, *words, "--labels")
    assert code == 0 and found["labels"][0] == "ok"
    code, found = check(capsys, *words, "--labels", "--classes", "crackforest")
    assert code == 2 and found["labels"][0] == "wrong"


def test_faults_do_not_hide_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(3):
        (tmp_path / f"{i}.png").write_text("no picture")
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("".join(json.dumps({"image": f"{i}.png"}) + "\n" for i in range(3)))
    code, found = check(capsys, "--shard", manifest, "--weights", tmp_path / "gone", "--device", "gpu")
    assert code == 2
    assert {name for name, (verdict, _) in found.items() if verdict == "wrong"} == {
        "images",
        "size",
        "device",
        "weights",
    }
    assert found["images"][1] == "3 of 3 cannot be used:"
    assert found["cache"] == ("left out", "its size follows from the manifest and the weights")


def test_a_share_of_the_gpu_is_set_before_the_gpu_works_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[object] = []
    ones = torch.ones
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *given: done.append(given))
    monkeypatch.setattr(torch, "ones", lambda *shape, device: done.append(str(device)) or ones(*shape))
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80_000_000_000)
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Big")
    assert describe_device("cuda:0", 0.25) == "cuda:0: Big, 80 GB, of which this site takes 20.0 GB at most"
    assert done == [(0.25, 0), "cuda:0"]
    assert describe_device("cuda:0") == "cuda:0: Big, 80 GB"
    assert done[2:] == ["cuda:0"]


def test_a_share_without_a_gpu_is_wrong(
    words: list[object], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words[words.index("cpu")] = "auto"
    code, found = check(capsys, *words, "--gpu-share", "0.5")
    assert code == 2 and found["device"][0] == "wrong"
    assert "gpu-share is 0.5 but this site has no GPU" in found["device"][1]


def test_features_that_are_there_need_no_room(
    words: list[object], scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from common.data.manifest import read_shard
    from common.features.cache import open_features
    from common.settings.load import load_config

    settings = load_config(
        {"preset": "fuss-clean", "model.weights": "random", "model.height": 33, "model.width": 49}
    )
    features = open_features(
        read_shard(scenes / "site-0.jsonl"),
        settings.model,
        settings.cache,
        tmp_path / "c",
        "cpu",
        settings.seed,
    )
    code, found = check(capsys, *words)
    assert code == 0 and "holds the features of all 10 images already" in found["cache"][1]
    assert features.weights_hash[:12] in found["weights"][1]


def test_the_environment_counts(
    scenes: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SITESEG_SHARD", str(scenes / "site-1.jsonl"))
    monkeypatch.setenv("SITESEG_WEIGHTS", "random")
    monkeypatch.setenv("SITESEG_STATE", str(tmp_path / "memory"))
    code, found = check(capsys)
    assert code == 0 and "site-1.jsonl" in found["manifest"][1] and "memory" in found["state"][1]


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("check", "egress"):
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0 and "example: python -m client" in capsys.readouterr().out


# --- network --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("example.org:9092", Address("example.org", 9092)),
        ("10.0.0.7:1", Address("10.0.0.7", 1)),
        ("[::1]:9092", Address("::1", 9092)),
    ],
)
def test_addresses_are_read(text: str, expected: Address) -> None:
    assert parse_address(text) == expected and parse_address(str(expected)) == expected


@pytest.mark.parametrize(
    "text", ["example.org", "http://example.org:9092", "a:b", "a:0", "a:70000", ":9", "::1:9", ""]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is no address; give HOST:PORT"):
        parse_address(text)


def test_a_closed_port_an_unknown_name_and_silence_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening
        with pytest.raises(UserError, match="nothing listens on port"):
            connect(Address("127.0.0.1", taken.getsockname()[1]))
    for error, words in (
        (socket.gaierror(), "is not known here"),
        (TimeoutError(), "does not answer within"),
        (OSError(101, "Network is unreachable"), "Network is unreachable"),
    ):

        def fail(*_: object, error: OSError = error) -> None:
            raise error

        monkeypatch.setattr(socket, "create_connection", fail)
        with pytest.raises(UserError, match=words):
            connect(Address("example.org", 9092))


def make_certificate(
    folder: Path, begin: int = -1, end: int = 90, name: str = "localhost"
) -> tuple[Path, Path]:
    """Write a self-signed certificate, valid from ``begin`` to ``end`` days from now, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    today = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(today + timedelta(days=begin))
        .not_valid_after(today + timedelta(days=end, hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir(exist_ok=True)
    files = folder / "ca.crt", folder / "ca.key"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    files[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    )
    return files


def test_certificates_are_read_and_their_time_is_told(tmp_path: Path) -> None:
    assert "valid for 90 more days" in check_certificates(make_certificate(tmp_path / "a")[0])
    assert check_certificates(make_certificate(tmp_path / "b", end=3)[0]).endswith(
        "3 more days, which is soon"
    )
    with pytest.raises(UserError, match=r"CN=localhost .* expired on"):
        check_certificates(make_certificate(tmp_path / "c", -9, -2)[0])
    with pytest.raises(UserError, match=r"is not valid before .* check this machine's clock"):
        check_certificates(make_certificate(tmp_path / "d", 3, 9)[0])
    with pytest.raises(UserError, match="cannot be read"):
        check_certificates(tmp_path / "gone.crt")
    (tmp_path / "x.crt").write_text("hello")
    with pytest.raises(UserError, match="holds no PEM certificate"):
        check_certificates(tmp_path / "x.crt")


@contextlib.contextmanager
def tls_server(certificate: Path, key: Path, protocols: list[str]) -> Iterator[Address]:
    """A server on loopback that shakes hands and hangs up; it chooses among ``protocols``, if there are any."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    if protocols:
        context.set_alpn_protocols(protocols)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)

        def serve() -> None:
            while True:
                try:
                    plain, _ = listener.accept()
                    with plain, context.wrap_socket(plain, server_side=True):
                        pass
                except ssl.SSLError:
                    continue
                except OSError:
                    return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield Address("localhost", listener.getsockname()[1])


def test_a_handshake_needs_the_right_certificate(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path / "tls")
    with tls_server(certificate, key, ["h2"]) as address:
        assert "its certificate is good" in shake_hands(address, certificate)
        with pytest.raises(UserError, match="does not vouch for"):
            shake_hands(address, make_certificate(tmp_path / "other")[0])


@pytest.mark.parametrize("protocols", [["http/1.1"], []])
def test_the_control_port_is_not_taken_for_the_fleet_api(tmp_path: Path, protocols: list[str]) -> None:
    certificate, key = make_certificate(tmp_path / "tls")  # the same for both ports of a SuperLink
    with (
        tls_server(certificate, key, protocols) as address,
        pytest.raises(UserError, match=r"is not the Fleet API .* usually 9092"),
    ):
        shake_hands(address, certificate)


def test_a_grpc_server_is_the_right_port(tmp_path: Path) -> None:
    import grpc

    certificate, key = make_certificate(tmp_path / "tls")
    server = grpc.server(ThreadPoolExecutor(1))
    identity = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
    port = server.add_secure_port("127.0.0.1:0", identity)
    server.start()
    try:
        assert "its certificate is good" in shake_hands(Address("localhost", port), certificate)
    finally:
        server.stop(None)


def test_a_server_without_tls_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            plain, _ = listener.accept()
            with plain:
                plain.recv(100)
                plain.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with pytest.raises(UserError, match="does not speak TLS"):
            shake_hands(Address("localhost", listener.getsockname()[1]), make_certificate(tmp_path / "a")[0])
        thread.join(10)


def make_key(path: Path, kind: str = "ec", passphrase: bytes = b"") -> Path:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    key = ec.generate_private_key(ec.SECP384R1()) if kind == "ec" else ed25519.Ed25519PrivateKey.generate()
    lock = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    data = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, lock)
    path.write_bytes(data)
    path.chmod(0o600)
    return path


def test_keys_are_what_flower_wants(tmp_path: Path) -> None:
    assert "secp384r1" in check_key(make_key(tmp_path / "good"))
    with pytest.raises(UserError, match="is not an elliptic-curve key"):
        check_key(make_key(tmp_path / "edwards", "ed25519"))
    with pytest.raises(UserError, match="is no OpenSSH private key; make one with ssh-keygen"):
        check_key(make_certificate(tmp_path / "pem")[1])
    with pytest.raises(UserError, match="cannot be read"):
        check_key(tmp_path / "gone")
    loose = make_key(tmp_path / "loose")
    loose.chmod(0o644)
    with pytest.raises(UserError, match="may be read by other users; run chmod 600"):
        check_key(loose)


def test_the_whole_network_in_one_go(
    words: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    certificate, server_key = make_certificate(tmp_path / "tls")
    key = make_key(tmp_path / "key")
    with tls_server(certificate, server_key, ["h2"]) as address:
        network: list[object] = ["--server", address, "--root-certificates", certificate, "--key", key]
        code, found = check(capsys, *words, *network)
        assert code == 0
        assert [found[name][0] for name in ("certificates", "key", "server", "encryption")] == ["ok"] * 4
        os.unlink(certificate)  # noqa: PTH108
        code, found = check(capsys, *words, *network)
    assert code == 2 and found["certificates"][0] == "wrong" and found["encryption"][0] == "left out"
    assert found["server"][0] == "ok"


# --- tasks that train a whole network -------------------------------------------------------------------


def test_a_network_needs_neither_weights_nor_a_cache_at_the_site(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: object) -> None:
        raise AssertionError("a label was opened")

    monkeypatch.setattr("common.data.images.read_raw_label", closed)
    words = ["--set=task=adaptation", "--shard", scenes / "site-0.jsonl", "--cache", tmp_path / "c"]
    code, found = check(capsys, *words, "--weights", "nowhere")
    assert code == 0
    assert list(found) == ["manifest", "images", "size", "device", "weights", "state", "server"]
    assert found["weights"] == ("ok", "none needed: task 'adaptation' sends the whole network")
    assert not list(tmp_path.iterdir())


def test_supervised_training_opens_the_labels_so_the_check_does_too(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--set=task=supervised", "--shard", scenes / "site-0.jsonl", "--cache", tmp_path / "c"]
    code, found = check(capsys, *words)
    assert code == 0 and found["labels"] == ("ok", "all 10 can be read and have known values")
    unlabelled = tmp_path / "m.jsonl"
    images = [json.loads(line)["image"] for line in (scenes / "site-0.jsonl").read_text().splitlines()]
    unlabelled.write_text("".join(json.dumps({"image": image}) + "\n" for image in images))
    root = json.loads((scenes / "partition.json").read_text())["root"]
    given = ["--set=task=supervised", "--shard", unlabelled, "--data-root", scenes / root]
    code, found = check(capsys, *given, "--classes", "synthetic")
    assert code == 2 and found["labels"] == ("wrong", "10 of 10 cannot be used:")
    assert found["images"][0] == found["size"][0] == "ok"


def test_the_state_folder_needs_room_for_the_networks_that_label(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 10**9, 60 * 10**6))
    words = ["--shard", scenes / "site-0.jsonl", "--state", tmp_path / "s"]
    code, found = check(capsys, "--set=task=adaptation", *words)
    assert code == 2 and found["state"][0] == "wrong" and "Two networks need 102.0 MB" in found["state"][1]
    assert check(capsys, "--set=task=supervised", *words)[1]["state"][0] == "ok"
