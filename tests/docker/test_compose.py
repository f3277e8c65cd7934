"""Do the container files keep what they promise? Read, not run: no engine is needed here."""

from __future__ import annotations

import ast
import configparser
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from common.settings.load import load_config, read_recipe
from tests.conftest import ROOT

DOCKER = ROOT / "docker"
OVERLAYS = ("compose.tls.yaml", "compose.gpu.yaml")
SITES = ("site-0", "site-1", "site-2", "site-3")


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DOCKER / name).read_text(encoding="utf-8"))
    return found


def overlaid(base: Any, top: Any) -> Any:
    """Put one compose file on another, by the rules that ours need: mappings merge, lists add up, words win."""
    if isinstance(base, dict) and isinstance(top, dict):
        merged = base | {key: overlaid(base.get(key), value) for key, value in top.items()}
        for key in ("command", "test"):
            merged |= {key: top[key]} if key in top else {}
        return merged
    if isinstance(base, list) and isinstance(top, list):
        return base + top
    return top


@pytest.fixture(params=["plain", "tls"])
def services(request: pytest.FixtureRequest) -> dict[str, Any]:
    found = read("compose.yaml")
    if request.param == "tls":
        found = overlaid(found, read("compose.tls.yaml"))
    services: dict[str, Any] = found["services"]
    return services


def networks(service: dict[str, Any]) -> set[str]:
    return set(service.get("networks", ()))


def words(service: dict[str, Any]) -> list[str]:
    return [str(word) for word in service["command"]]


def test_every_service_is_locked_down(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not {"privileged", "pid", "ipc", "devices", "env_file"} & set(service), name
        if name == "folders":  # hands root's new folders over, and can do nothing else
            assert service["cap_add"] == ["CHOWN"] and service["network_mode"] == "none"
            assert words(service)[0] == "find" and "root" in words(service)
        else:
            assert service["user"] == "${SITESEG_UID:-1000}:${SITESEG_GID:-1000}", name
            assert "cap_add" not in service, name


def test_no_site_is_on_the_network_of_the_control_port(services: dict[str, Any]) -> None:
    for site in SITES:
        assert networks(services[site]) == {"fleet"}
    assert {name for name in services if "control" in networks(services[name])} <= {
        "superlink",
        "serverapp",
        "run",
        "register",
    }
    link = words(services["superlink"])
    assert link[link.index("--host") + 1] == "control"
    assert read("compose.yaml")["networks"] == {"control": {"internal": True}, "fleet": {"internal": True}}
    for service in services.values():
        assert not any("8000" in str(port) for port in service.get("ports", ()))


def test_long_running_services_have_a_health_check_and_come_back(services: dict[str, Any]) -> None:
    for name in ("superlink", "serverapp", *SITES):
        assert services[name]["restart"] == "unless-stopped", name
        assert services[name]["healthcheck"]["test"][:2] == ["CMD", "siteseg-health"], name
    for site in SITES:
        assert "joined://superlink:9092" in services[site]["healthcheck"]["test"]
        address = words(services[site])[words(services[site]).index("--superlink") + 1]
        assert f"joined://{address}" in services[site]["healthcheck"]["test"]
        assert services["run"]["depends_on"][site] == {"condition": "service_healthy"}


def test_sites_read_their_pictures_and_write_only_their_own_cache(services: dict[str, Any]) -> None:
    for index, site in enumerate(SITES):
        writable = [volume for volume in services[site]["volumes"] if not volume.endswith(":ro")]
        assert writable == [f"cache-{index}:/cache"]
        assert "shards:/shards:ro" in services[site]["volumes"]


def test_the_encrypted_variant_leaves_nothing_in_the_open() -> None:
    merged = overlaid(read("compose.yaml"), read("compose.tls.yaml"))["services"]
    for name, service in merged.items():
        assert "--insecure" not in words(service), name
    assert "--enable-supernode-auth" in words(merged["superlink"])
    for site in SITES:
        assert "--auth-supernode-private-key" in words(merged[site])
        keys = [volume for volume in merged[site]["volumes"] if "key" in volume]
        assert keys == [f"{site}-key:/keys:ro"]
    holders = [name for name, s in merged.items() if any("authority" in str(v) for v in s.get("volumes", ()))]
    assert sorted(holders) == ["certificates", "folders"]


def test_every_site_can_have_a_device_of_its_own() -> None:
    gpu = read("compose.gpu.yaml")["services"]
    assert tuple(gpu) == SITES
    for index, site in enumerate(SITES):
        (device,) = gpu[site]["deploy"]["resources"]["reservations"]["devices"]
        assert device == {
            "driver": "nvidia",
            "device_ids": [f"${{SITESEG_GPU_{index}:-0}}"],
            "capabilities": ["gpu"],
        }


def test_all_volumes_are_declared_and_handed_over() -> None:
    merged = overlaid(read("compose.yaml"), read("compose.tls.yaml"))
    used = {
        volume.partition(":")[0]
        for service in merged["services"].values()
        for volume in service["volumes" if "volumes" in service else "command"]
        if "volumes" in service and not volume.startswith(".")
    } - {""}
    handed = {volume.partition(":")[0] for volume in merged["services"]["folders"]["volumes"]} - {"../runs"}
    assert used == set(merged["volumes"]) == handed


@pytest.mark.parametrize("name", sorted(path.name for path in DOCKER.iterdir() if path.suffix != ".py"))
def test_no_secret_and_no_package_index_is_written_down(name: str) -> None:
    path = DOCKER / name
    files = path.rglob("*") if path.is_dir() else [path]
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    assert not re.search(r"(?i)password|passwd\b|token|BEGIN .*PRIVATE|https?://(?!control|127)", text)


def test_the_recipe_of_the_compose_run_is_valid_and_downloads_nothing() -> None:
    config = load_config(read_recipe(DOCKER / "compose-run.toml"))
    assert config.model.weights == "random"
    assert config.sites.expected == len(SITES)


def test_images_are_pinned_and_not_root() -> None:
    text = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
    stages = re.findall(r"(?im)^FROM (\S+)(?: AS (\S+))?", text)
    assert stages[0][0] == "python:${PYTHON}-slim-bookworm"
    assert re.search(r"^ARG PYTHON=3\.\d+$", text, re.M)
    assert [stage[1] for stage in stages[1:]] == ["server", "client"]
    assert re.findall(r"(?m)^USER (\S+)", text)[-1] == "1000:1000"
    assert 'ARG TORCH_INDEX=""' in text
    copied = re.findall(r"(?m)^COPY (?:--\S+ )*(.*) \S+$", text)
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert sorted(" ".join(copied).split()) == sorted(allowed)


def pins() -> dict[str, str]:
    found = {}
    for name in ("torch.txt", "requirements.txt"):
        for line in (DOCKER / name).read_text(encoding="utf-8").splitlines():
            if line and not line.startswith("#"):
                package, equals, version = line.partition("==")
                assert equals and re.fullmatch(r"[\w.]+", version), line
                found[canonicalize_name(package)] = version
    return found


def test_pins_are_sorted_and_satisfy_the_project() -> None:
    locked = pins()
    listed = [
        line.partition("==")[0]
        for line in (DOCKER / "requirements.txt").read_text().splitlines()
        if not line.startswith("#")
    ]
    assert listed == sorted(listed)
    for text in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]:
        wanted = Requirement(text)
        if wanted.name in locked:
            assert wanted.specifier.contains(locked[canonicalize_name(wanted.name)]), text


NOT_IN_IMAGES = {"ray", "onnx", "onnxruntime", "onnxscript"}  # simulation and export happen elsewhere


def test_whatever_the_code_imports_is_in_the_images() -> None:
    owners, locked = packages_distributions(), set(pins())
    for package in ("server", "client", "common", "partitions"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
                for top in {name.partition(".")[0] for name in names} - NOT_IN_IMAGES:
                    if top in sys.stdlib_module_names or (ROOT / top).is_dir():
                        continue
                    found = {canonicalize_name(owner) for owner in owners.get(top, [top])}
                    assert found & locked, f"{path.relative_to(ROOT)} imports {top}"


@pytest.mark.parametrize("path", sorted((DOCKER / "systemd").glob("*.service")), ids=lambda path: path.stem)
def test_service_files_start_again_and_have_no_privileges(path: Path) -> None:
    unit = configparser.RawConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(path.read_text(encoding="utf-8").replace("\\\n", " "))
    service = unit["Service"]
    assert "Environment=PATH=/opt/siteseg/.venv/bin:" in path.read_text()  # flower-superexec is found by name
    assert service["Restart"] == "always"
    assert service["User"] not in ("", "root")
    assert service["NoNewPrivileges"] == "yes" and service["ProtectSystem"] == "strict"
    assert "--insecure" not in service["ExecStart"]
    if "flower-superlink" in service["ExecStart"]:
        assert "--host 127.0.0.1" in service["ExecStart"]
        assert "--enable-supernode-auth" in service["ExecStart"]


def test_one_site_in_a_container_is_locked_down_encrypted_and_asks_for_what_it_needs() -> None:
    services = read("compose.site.yaml")["services"]
    for service in services.values():
        assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "ports" not in service
    site = services["site"]
    assert "--insecure" not in words(site) and "--auth-supernode-private-key" in words(site)
    assert [volume for volume in site["volumes"] if not volume.endswith(":ro")] == ["cache:/cache"]
    text = (DOCKER / "compose.site.yaml").read_text()
    for name in ("SERVER", "SITE", "SHARD", "KEYS", "PICTURES"):
        assert f"${{SITESEG_{name}:?" in text
    assert list(read("compose.site-gpu.yaml")["services"]) == ["site"]
