"""Is a GPU chosen, shared and made reproducible as asked, and is a CPU left alone?"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import textwrap
from typing import Any

import pytest
import torch

from common.errors import UserError
from common.system.device import WORKSPACES, choose_device, limit_memory, room_on_device, set_deterministic
from tests.conftest import ROOT

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture
def torch_flags(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A GPU that CUDA has not been started on; what torch is asked for is noted instead of done."""
    asked: dict[str, Any] = {}
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(
        torch, "use_deterministic_algorithms", lambda on, warn_only: asked.update(on=on, warn_only=warn_only)
    )
    return asked


def test_a_device_that_is_not_there_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(UserError, match="'cuda:1' was asked for but torch sees 1 CUDA devices"):
        choose_device("cuda:1")
    with pytest.raises(UserError, match="Device 'gpu' is unknown"):
        choose_device("gpu")


def test_deterministic_sets_all_that_cuda_needs_before_it_starts(torch_flags: dict[str, Any]) -> None:
    set_deterministic(True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] in WORKSPACES
    assert torch_flags == {"on": True, "warn_only": True}
    assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
    set_deterministic(False)  # the next run of the same process
    assert torch_flags["on"] is False and not torch.backends.cudnn.deterministic


def test_deterministic_after_cuda_has_started_is_refused(
    torch_flags: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    set_deterministic(False)
    with pytest.raises(UserError, match="start it with CUBLAS_WORKSPACE_CONFIG=:4096:8"):
        set_deterministic(True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # whoever started the process has seen to it
    set_deterministic(True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8" and torch_flags["on"] is True


def test_without_a_gpu_nothing_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    set_deterministic(True)
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("device", "share", "asked"),
    [
        ("cuda", 0.25, [(0.25, None)]),
        ("cuda:1", 0.5, [(0.5, 1)]),
        ("cuda", 1.0, []),  # CUDA is not even started
        ("cpu", 0.25, []),
    ],
)
def test_a_share_is_a_limit_of_one_device(
    monkeypatch: pytest.MonkeyPatch, device: str, share: float, asked: list[tuple[float, int | None]]
) -> None:
    found: list[tuple[float, int | None]] = []
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda part, index: found.append((part, index))
    )
    limit_memory(torch.device(device), share)
    assert found == asked


# --- on a GPU -------------------------------------------------------------------------------------------


def run(script: str, **environment: str) -> str:
    """Run a script in a fresh process, where CUDA has not been used yet; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


TRAINING = """
    import hashlib, torch
    from common.settings.network import Network, Sgd
    from common.system.device import set_deterministic
    from common.models.network import build_network
    from common.training.steps import Stepper
    set_deterministic(True)
    network = build_network(5, Network(weights="random"), 0).cuda()
    stepper = Stepper(network, Sgd(), first_step=0, total_steps=4, seed=0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        images = torch.rand(2, 3, 128, 160, generator=generator).cuda()
        labels = torch.randint(5, (2, 128, 160), generator=generator).cuda()
        with stepper.autocast():
            logits = network(images)
        losses = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")
        stepper.step(losses.mean(), images)
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    print(digest.hexdigest())
"""


@pytest.mark.gpu
@NEEDS_GPU
def test_deterministic_training_on_cuda_gives_the_same_hash_twice() -> None:
    first, second = run(TRAINING), run(TRAINING)
    assert len(first) == 2 * hashlib.sha256().digest_size
    assert first == second


SHARED = """
    import torch
    from common.system.device import limit_memory
    device, share = torch.device("cuda"), 0.2
    limit_memory(device, share)
    total = torch.cuda.get_device_properties(device).total_memory
    kept = torch.ones(int(0.15 * total), dtype=torch.uint8, device=device)
    try:
        torch.ones(int(0.1 * total), dtype=torch.uint8, device=device)
    except torch.cuda.OutOfMemoryError:
        print("held to its share", int(kept[-1]))
"""


@pytest.mark.gpu
@NEEDS_GPU
def test_two_processes_share_one_gpu() -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(SHARED)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    assert [process.communicate(timeout=300)[0].strip() for process in processes] == [
        "held to its share 1"
    ] * 2


def test_a_gpu_out_of_memory_is_one_sentence() -> None:
    with (
        pytest.raises(UserError, match=r"no room for this work \(CUDA out of memory\); lower x\.$"),
        room_on_device("lower x"),
    ):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory\nDetails of the allocator")
    with pytest.raises(RuntimeError, match="something else"), room_on_device("lower x"):
        raise RuntimeError("something else")
