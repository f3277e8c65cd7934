"""Does `serve` refuse what cannot work in one sentence, and start Flower's SuperNode with the right words?"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import client.join.serve as serving
from client.__main__ import client_main as main
from client.join.connection import Address
from client.join.serve import HURRY, LOOPBACK, Node, is_loopback, local_port
from common.errors import EXIT_BAD_INPUT
from tests.conftest import ROOT
from tests.support.scripts import load_script

certs = load_script("certs")
SERVER = ["--server", "127.0.0.1:9092"]


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A certificate and a key that serve, and files that do not."""
    folder = tmp_path_factory.mktemp("certificates")
    certs.make_server(folder, [])
    certs.make_site(folder, "a")
    (folder / "no.pem").write_text("nothing")
    site = folder / "sites" / "a"
    return {"ca": str(site / "ca.crt"), "key": str(site / "site.key"), "bad": str(folder / "no.pem")}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the environment as it was, and start nothing."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for name in [name for name in os.environ if name.startswith("SITESEG_")]:
        del os.environ[name]


@pytest.fixture
def shard(tmp_path: Path) -> str:
    """A manifest of one picture, which nobody opens here."""
    path = tmp_path / "site-0.jsonl"
    (tmp_path / "a.png").write_bytes(b"")
    path.write_text(json.dumps({"image": "a.png"}) + "\n")
    return str(path)


def refusal(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["serve", *words])
    assert stop.value.code == EXIT_BAD_INPUT
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.endswith(".\n") and said.count("\n") == 1, said
    return said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "--server"),
        ([*SERVER, "--insecure", "--port", "99999"], "99999"),
        ([*SERVER, "--insecure", "--port", "http"], "'http'"),
        ([*SERVER, "--insecure", "--threads", "many"], "--threads"),
        ([*SERVER, "--insecure", "--threads", "-1"], "'threads' is '-1'"),
        ([*SERVER, "--insecure", "--site", "../up"], "'name' is '../up'"),
        (["--server", "http://127.0.0.1", "--insecure"], "is no address"),
        (["--server", "example.org:9092", "--insecure"], "example.org is another"),
        (["--server", "192.0.2.1:9092", "--insecure"], "192.0.2.1 is another"),
        (SERVER, "--root-certificates is missing"),
        ([*SERVER, "--insecure", "--key", "KEY"], "--insecure excludes"),
        ([*SERVER, "--insecure", "--root-certificates", "CA"], "--insecure excludes"),
        ([*SERVER, "--root-certificates", "/nowhere/ca.crt"], "cannot be read"),
        ([*SERVER, "--root-certificates", "BAD"], "no PEM certificate"),
        ([*SERVER, "--root-certificates", "CA", "--key", "/nowhere/key"], "cannot be read"),
        ([*SERVER, "--root-certificates", "CA", "--key", "BAD"], "no OpenSSH private key"),
        (
            [*SERVER, "--root-certificates", "CA", "--key", "KEY", "--shard", "/nowhere.jsonl"],
            "does not exist",
        ),
    ],
)
def test_bad_words_are_refused_in_a_sentence(
    words: list[str],
    sentence: str,
    shard: str,
    identity: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {"CA": identity["ca"], "KEY": identity["key"], "BAD": identity["bad"]}
    where = [] if "--shard" in words else ["--shard", shard]
    assert sentence in refusal([*where, *(given.get(word, word) for word in words)], capsys)


def test_a_site_without_a_shard_is_told_how_to_name_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert "give --shard or set SITESEG_SHARD" in refusal([*SERVER, "--insecure"], capsys)


def test_a_port_that_is_taken_is_refused(shard: str, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert port in refusal([*SERVER, "--insecure", "--shard", shard, "--port", port], capsys)


def test_tasks_find_the_settings_in_the_environment(shard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes: list[Node] = []
    monkeypatch.setattr(serving, "serve", lambda node, notice: nodes.append(node) or 0)
    os.environ["SITESEG_DEVICE"] = "cpu"
    words = ["--shard", shard, "--site", "north", "--cache", "c", "--threads", "2", "--insecure", *SERVER]
    assert main(["serve", *words]) == 0
    assert nodes == [Node("north", Address("127.0.0.1", 9092), None, None)]
    given = {key: value for key, value in os.environ.items() if key.startswith("SITESEG_")}
    assert given == {
        "SITESEG_SHARD": shard,
        "SITESEG_SITE": "north",
        "SITESEG_CACHE": "c",
        "SITESEG_THREADS": "2",
        "SITESEG_DEVICE": "cpu",
    }


@pytest.mark.parametrize(
    ("host", "here"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.8.8.8", True), ("10.0.0.1", False)],
)
def test_only_this_machine_is_loopback(host: str, here: bool) -> None:
    assert is_loopback(host) is here


def test_flower_reads_the_words_as_they_are_meant(identity: dict[str, str]) -> None:
    from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode

    node = Node("north", Address("::1", 9092), Path(identity["ca"]), Path(identity["key"]))
    read: Any = _parse_args_run_supernode().parse_args(node.command_line(4321, "/dev/fd/7")[1:])
    assert read.superlink == "[::1]:9092"
    assert (read.host, read.port, read.isolation) == (LOOPBACK, 4321, "process")
    assert (read.insecure, read.root_certificates) == (False, identity["ca"])
    assert read.auth_supernode_private_key == identity["key"]
    assert read.superexec_auth_secret_file == "/dev/fd/7"
    assert read.node_config == 'site="north"'
    plain: Any = _parse_args_run_supernode().parse_args(
        Node("n", Address("localhost", 1), None, None).command_line(1, "f")[1:]
    )
    assert (plain.insecure, plain.root_certificates, plain.auth_supernode_private_key) == (True, None, None)


def test_a_free_port_can_be_taken() -> None:
    with socket.socket() as taker:
        taker.bind((LOOPBACK, local_port(0)))


def test_the_supernode_waits_a_fraction_of_flowers_times(monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.supernode import cli, start_client_internal

    before = vars(start_client_internal)["time"]
    assert before is time  # where Flower takes its waiting from; else it would not be hurried
    slept: list[float] = []
    monkeypatch.setattr(serving.time, "sleep", slept.append)
    monkeypatch.setattr("flwr.supercore.app_utils.start_parent_process_monitor", lambda parent: None)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(cli, "flower_supernode", lambda: vars(start_client_internal)["time"].sleep(3))
    try:
        with pytest.raises(SystemExit) as stop:
            serving.run_supernode(["flower-supernode"], 1)
    finally:
        vars(start_client_internal)["time"] = before
    assert stop.value.code == 0
    assert slept == [3 / HURRY]


def test_help_needs_nothing_heavy() -> None:
    script = (
        "import sys\nfrom client.__main__ import client_main as main\n"
        "try: main(['serve', '--help'])\nexcept SystemExit as stop: code = stop.code\n"
        "assert code == 0 and not {'torch', 'flwr'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "--root-certificates" in done.stdout
