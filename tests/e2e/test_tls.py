"""Who gets into a federation that is encrypted and knows its sites, and who is refused?"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from common.checkpoint import load_checkpoint
from tests.conftest import ROOT
from tests.support.deployed_runs import check_same, egress, in_one_process, run_config
from tests.support.deployment import BIN, CONNECTION, Deployment
from tests.support.federation import metrics
from tests.support.scripts import load_script
from tests.support.warm import start_warm_site

pytestmark = pytest.mark.net

certs = load_script("certs")
NODE = 'shard="/nowhere/site.jsonl"'  # the refused never get as far as their pictures
TWICE = ("--max-retries", "2")  # a node retries for ever by default: right for a site, too long for a test


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    certs.make_server(folder, ["federation.example.org"])
    for name in ("alpha", "beta", "gamma", "stranger"):
        certs.make_site(folder, name)
    (folder / "public" / "stranger.pub").unlink()  # never handed to the operator
    return folder


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory, certificates: Path) -> Iterator[Deployment]:
    with Deployment(tmp_path_factory.mktemp("tls") / "net", certificates=certificates) as deployment:
        deployment.superlink()
        register(deployment, certificates)
        yield deployment


def register(net: Deployment, certificates: Path) -> None:
    """Let in who handed a public key to the operator."""
    control = subprocess.run(
        [
            *(sys.executable, str(ROOT / "docker" / "control.py"), "register"),
            *("--address", f"127.0.0.1:{net.http}", "--ca", str(certificates / "public" / "ca.crt")),
            str(certificates / "public"),
        ],
        env=net.environment("control"),
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert control.returncode == 0, control.stdout + control.stderr
    assert control.stdout.splitlines() == [f"{name}: registered" for name in ("alpha", "beta", "gamma")]


def outcome(net: Deployment, name: str, seconds: float = 60) -> tuple[int, str]:
    """Wait until a node has given up; return its exit code and what it said."""
    code = net.processes[name].wait(seconds)
    return code, net.log(name)


def activated(net: Deployment) -> int:
    """Count the nodes that the server has let in so far."""
    text = (net.folder / "superlink.log").read_text(errors="replace")
    return text.count("[Fleet.ActivateNode] Activated")


def test_registered_sites_join_under_the_names_of_their_keys_and_train_the_model_of_one_process(
    net: Deployment, scenes: Path, tmp_path: Path
) -> None:
    names, own = ("alpha", "beta"), ("self-styled-1", "self-styled-2")
    for index, name in enumerate(names):
        # what a site calls itself steers what it draws, and does not matter where its key has a name
        words = f'shard="{scenes}/site-{index}.jsonl" cache="{tmp_path}/{name}" threads=1'
        net.supernode(name, f'site="{own[index]}" {words}')
    run_dir = tmp_path / "run"
    settings = {"rounds": 2, "loss__objective": "correspondence", "sites__expected": 2, "sites__minimum": 2}
    found = net.wait(net.submit(run_config(scenes, run_dir, **settings)), 300)
    assert found == "finished:completed", f"{found}\n{net.everything()}"
    lines = metrics(run_dir)
    for line in lines:
        assert line["sites"] == sorted(line["bytes_up"]) == list(names)
        assert line["quarantined"] == {} and 0 < line["miou"] < 1
    expected = in_one_process(scenes, tmp_path / "apart", own, **settings)
    for line in expected:
        line["bytes_up"] = dict(zip(names, line["bytes_up"].values(), strict=True))
    check_same(lines, expected)
    assert load_checkpoint(run_dir).round == 2
    assert (run_dir / "report.html").is_file()
    # the ledger of a site and the server's account agree to the byte
    sent = [entry["total"] for entry in egress(tmp_path / "alpha") if entry["action"] == "train"]
    assert sent == [line["bytes_up"]["alpha"] for line in lines]

    # a second process that shows the key of a site that is present
    net.supernode("twin", NODE, identity=[*net.site_identity("alpha"), *TWICE])
    code, said = outcome(net, "twin")
    assert code == 1
    assert "Failed to activate SuperNode" in said

    assert activated(net) == 2


def test_a_warm_site_shows_its_key_and_ends_where_it_is_refused(
    net: Deployment, certificates: Path, scenes: Path, tmp_path: Path
) -> None:
    before = activated(net)
    for name, process in (("gamma", "warm"), ("stranger", "warm-stranger")):
        own = certificates / "sites" / name
        identity = ("--root-certificates", str(own / "ca.crt"), "--key", str(own / "site.key"))
        start_warm_site(net, process, name, scenes / "site-2.jsonl", tmp_path / name, *identity)
    code, said = outcome(net, "warm-stranger", 90)
    assert code == 1
    assert "Failed to activate SuperNode" in said
    end = time.monotonic() + 60
    while activated(net) == before and time.monotonic() < end:
        time.sleep(0.2)
    assert net.processes["warm"].poll() is None, net.log("warm")
    assert activated(net) == before + 1


@pytest.mark.parametrize(
    ("name", "reason"),
    [("plaintext", "UNAVAILABLE"), ("keyless", "must be registered"), ("stranger", "Failed to activate")],
)
def test_others_are_refused(net: Deployment, certificates: Path, name: str, reason: str) -> None:
    before = activated(net)
    authority = ["--root-certificates", str(certificates / "public" / "ca.crt")]
    identity = {
        "plaintext": ["--insecure"],
        "keyless": authority,
        "stranger": net.site_identity("stranger"),
    }[name]
    net.supernode(name, NODE, identity=[*identity, *TWICE])
    code, said = outcome(net, name)
    assert code == 1
    assert reason.lower() in said.lower()
    assert activated(net) == before


def test_a_site_refuses_a_server_of_another_authority(net: Deployment, tmp_path: Path) -> None:
    before = activated(net)
    certs.make_server(tmp_path, ["127.0.0.1"])
    own = net.site_identity("beta")[2:]
    other = ["--root-certificates", str(tmp_path / "public" / "ca.crt")]
    net.supernode("misled", NODE, identity=[*other, *own, *TWICE])
    code, said = outcome(net, "misled")
    assert code == 1
    assert "CERTIFICATE_VERIFY_FAILED" in said
    assert activated(net) == before


def test_the_control_port_answers_no_plaintext(net: Deployment) -> None:
    home = net.home("plain-cli")
    text = (net.home("cli") / "config.toml").read_text()
    (home / "config.toml").write_text(text.partition("root-certificates")[0] + "insecure = true\n")
    done = subprocess.run(
        [str(BIN / "flwr"), "list", CONNECTION],
        env=net.environment("plain-cli"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0


def test_a_site_refuses_an_expired_certificate(certificates: Path, tmp_path: Path) -> None:
    folder = tmp_path / "certificates"
    certs.make_server(folder, [])
    certs.make_site(folder, "alpha")
    now = datetime.now(UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    authority = certs.open_authority(folder, now)
    names = certs.alternative_names([])
    span = (now - timedelta(days=9), now - timedelta(days=1))
    old = certs.make_certificate("Federation server", key, *span, authority, names)
    (folder / "server" / "server.crt").write_bytes(old.public_bytes(Encoding.PEM))
    (folder / "server" / "server.key").write_bytes(certs.private_pem(key))
    with Deployment(tmp_path / "net", certificates=folder) as net:
        net.start_superlink()
        end = time.monotonic() + 60
        while not net.listening() and time.monotonic() < end:
            time.sleep(0.2)
        net.supernode("alpha", NODE, identity=[*net.site_identity("alpha"), *TWICE])
        code, said = outcome(net, "alpha")
        assert code == 1
        assert "certificate has expired" in said.lower() or "CERTIFICATE_VERIFY_FAILED" in said
        assert activated(net) == 0
