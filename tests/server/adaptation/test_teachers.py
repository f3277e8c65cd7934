"""Is the running mean the mean of all models seen?"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from server.adaptation.teachers import running_mean


def model(seed: int, dtype: Any = np.float32) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {
        "conv.weight": random.normal(size=(3, 2)).astype(dtype),
        "bias": random.normal(size=4).astype(dtype),
    }


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(np.float32, 3e-7), (np.float64, 1e-14), (np.float16, 2e-3)]
)
def test_it_is_the_arithmetic_mean(dtype: Any, tolerance: float) -> None:
    models = [model(seed, dtype) for seed in range(20)]
    mean, count = None, 0
    for number, one in enumerate(models, start=1):
        mean, count = running_mean(mean, count, one)
        assert count == number
        for name in one:
            expected = np.mean([m[name].astype(np.float64) for m in models[:number]], axis=0)
            assert mean[name].dtype == dtype
            np.testing.assert_allclose(mean[name], expected, rtol=0, atol=tolerance * number**0.5)


def test_a_mean_of_one_model_many_times_is_that_model_bit_for_bit() -> None:
    mean, count = running_mean(None, 0, model(0))
    for _ in range(50):
        mean, count = running_mean(mean, count, model(0))
    assert all(np.array_equal(mean[name], array) for name, array in model(0).items())


def test_nothing_shares_memory_or_is_changed() -> None:
    first, second = model(0), model(1)
    mean, count = running_mean(None, 0, first)
    later, _ = running_mean(mean, count, second)
    for arrays, seed in ((first, 0), (second, 1), (mean, 0)):
        assert all(np.array_equal(arrays[name], array) for name, array in model(seed).items())
    assert not any(np.shares_memory(mean[name], first[name]) for name in first)
    assert not any(np.shares_memory(later[name], mean[name]) for name in first)


@pytest.mark.parametrize(
    ("mean", "count", "new", "words"),
    [
        (None, 2, model(0), "without its arrays"),
        (model(0), 0, model(0), "0 models was given with"),
        (model(0), -1, model(0), "-1 models"),
        (model(0), 1, {**model(0), "extra": np.zeros(1)}, "'extra'"),
        ({**model(0), "gone": np.zeros(1)}, 1, model(0), "'gone'"),
        (model(0), 1, {**model(0), "bias": np.zeros(5, np.float32)}, "'bias' has shape (5,)"),
        (None, 0, {"num_batches_tracked": np.zeros(1, np.int64)}, "'num_batches_tracked' holds int64"),
    ],
)
def test_models_that_do_not_fit_are_refused(mean: Any, count: int, new: Any, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        running_mean(mean, count, new)
