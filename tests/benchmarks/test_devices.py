"""Does a benchmark refuse a GPU that is not there in one sentence?"""

from __future__ import annotations

import importlib
import sys

import pytest
import torch

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))


@pytest.mark.parametrize(
    "words",
    [["local_round"], ["pseudo_labels"], ["deeplab_step"], ["deeplab_step", "--memory"]],
    ids=" ".join,
)
def test_a_gpu_that_is_not_there_is_one_sentence(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(sys, "argv", [*words, "--device", "cuda"])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(words[0]).main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: Device 'cuda' was asked for but torch sees 0 CUDA devices")
