"""Does every draw follow from one seed, and from nothing else?"""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import torch

from common.seeds import derive, numpy_generator, torch_generator
from tests.conftest import ROOT


def test_a_seed_is_the_same_in_every_process_and_version() -> None:
    assert derive(0, "site-3", 5, "batches") == 5938436469254679997
    code = "from common.seeds import derive; print(derive(0, 'site-3', 5, 'batches'))"
    printed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert int(printed) == derive(0, "site-3", 5, "batches")


def test_other_names_other_numbers() -> None:
    given = [(0,), (1,), (0, "a"), (0, "b"), (0, "a", "b"), (0, "ab"), (0, "a", 1), (0, "a1"), (0, "b", "a")]
    found = [derive(seed, *names) for seed, *names in given]  # type: ignore[arg-type]
    assert len(set(found)) == len(found)
    assert all(0 <= number < 1 << 63 for number in found)


def test_streams_repeat_and_do_not_depend_on_each_other() -> None:
    first = torch_generator(4, "site-0")
    torch.randn(3, generator=torch_generator(4, "site-1"))
    other = torch.randn(3, generator=torch_generator(4, "site-0"))
    assert torch.equal(torch.randn(3, generator=first), other)
    assert not torch.equal(other, torch.randn(3, generator=torch_generator(4, "site-1")))
    np.testing.assert_array_equal(numpy_generator(4, "x").random(3), numpy_generator(4, "x").random(3))


def test_global_generators_are_left_alone() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    torch_generator(9, "x")
    numpy_generator(9, "x")
    assert torch.equal(torch.random.get_rng_state(), before)
