"""torchvision imports beside a torch that cannot load its compiled operators."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from common.models import backbone as operators


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    operators.prepare_torchvision.cache_clear()
    yield
    operators.prepare_torchvision.cache_clear()


def refuse_torchvision(monkeypatch: pytest.MonkeyPatch, sentence: str, times: int) -> list[str]:
    """Let the next imports of torchvision fail as torchvision's own do."""
    real, refused = builtins.__import__, []

    def imported(name: str, *rest: Any) -> Any:
        if name == "torchvision" and len(refused) < times:
            refused.append(name)
            raise RuntimeError(sentence)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", imported)
    return refused


def test_operators_that_do_not_load_are_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    defined = []

    class Library:
        def __init__(self, *words: str) -> None:
            assert words == ("torchvision", "FRAGMENT")

        def define(self, signature: str) -> None:
            defined.append(signature.partition("(")[0])

    monkeypatch.setattr(operators, "torch", SimpleNamespace(library=SimpleNamespace(Library=Library)))
    refused = refuse_torchvision(monkeypatch, "operator torchvision::nms does not exist", times=1)
    assert isinstance(operators.prepare_torchvision(), Library)
    assert defined == ["nms", "qnms"]
    assert refused == ["torchvision"]


def test_another_fault_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_torchvision(monkeypatch, "compiled with different CUDA major versions", times=1)
    with pytest.raises(RuntimeError, match="different CUDA"):
        operators.prepare_torchvision()
