"""Do the server optimisers follow their papers, and does their state survive a stop?"""

from __future__ import annotations

import math

import numpy as np
import pytest

from common.errors import UserError
from common.settings.federation import Aggregation
from server.aggregation.server_optimizers import FIRST, SECOND, server_step

Arrays = dict[str, np.ndarray]


def rule(name: str, **settings: float) -> Aggregation:
    return Aggregation(optimizer=name, **settings)  # type: ignore[arg-type]


def slow(name: str, x: float, targets: list[float], lr: float, b1: float, b2: float, tau: float) -> float:
    """Algorithm 2 of Adaptive Federated Optimization on one number; momentum as in FedAvgM."""
    m, v = 0.0, tau * tau
    for target in targets:
        d = target - x
        if name == "momentum":
            m = b1 * m + d
            x = x + lr * m
            continue
        m = b1 * m + (1 - b1) * d
        if name == "adam":
            v = b2 * v + (1 - b2) * d * d
        elif name == "adagrad":
            v = v + d * d
        else:
            v = v - (1 - b2) * d * d * (1 if v > d * d else -1 if v < d * d else 0)
        x = x + lr * m / (math.sqrt(v) + tau)
    return x


@pytest.mark.parametrize("name", ["momentum", "adam", "yogi", "adagrad"])
def test_equals_the_formula_number_by_number(name: str) -> None:
    settings = rule(name, lr=0.3, momentum=0.8, second_moment=0.9, tau=0.01)
    start = np.array([[0.0, 1.0], [-2.0, 1e-3]])
    targets = [start + np.random.default_rng(i).standard_normal((2, 2)) * 0.1 for i in range(6)]
    x, state = {"w": start}, {}
    for target in targets:
        x, state = server_step(x, {"w": target}, state, settings)
    for index in np.ndindex(2, 2):
        expected = slow(name, float(start[index]), [float(t[index]) for t in targets], 0.3, 0.8, 0.9, 0.01)
        assert x["w"][index] == pytest.approx(expected, rel=1e-12)


def test_first_steps_by_hand() -> None:
    zero, one = {"w": np.zeros(1)}, {"w": np.ones(1)}
    x, state = server_step(zero, one, {}, rule("momentum", momentum=0.5))
    assert x["w"][0] == 1.0
    x, _ = server_step(x, one, state, rule("momentum", momentum=0.5))
    assert x["w"][0] == 1.5  # no new gradient, half of the old velocity
    x, _ = server_step(zero, one, {}, rule("adam", lr=1.0, momentum=0.9, second_moment=0.75, tau=1.0))
    assert x["w"][0] == pytest.approx(0.1 / (1.0 + 1.0))  # v = .75 * 1 + .25 * 1
    x, state = server_step(
        zero, {"w": np.full(1, 3.0)}, {}, rule("yogi", second_moment=0.75, tau=1.0, lr=1.0)
    )
    assert state[SECOND + "w"][0] == pytest.approx(1 + 0.25 * 9)


def test_no_optimizer_and_plain_momentum_take_the_average() -> None:
    rng = np.random.default_rng(0)
    old = {"w": rng.standard_normal(50).astype(np.float32)}
    mean = {"w": rng.standard_normal(50).astype(np.float32)}
    x, state = server_step(old, mean, {}, rule("none"))
    assert x["w"].tobytes() == mean["w"].tobytes() and state == {}
    x, _ = server_step(old, mean, {}, rule("momentum", momentum=0.0, lr=1.0))
    assert np.array_equal(x["w"], mean["w"])


def test_yogi_forgets_more_slowly_than_adam_when_gradients_vanish() -> None:
    x: Arrays = {"w": np.zeros(1)}
    second = {}
    for name in ("adam", "yogi"):
        settings, state = rule(name, second_moment=0.9), {}
        _, state = server_step(x, {"w": np.full(1, 10.0)}, state, settings)
        for _ in range(20):
            _, state = server_step(x, {"w": np.full(1, 0.1)}, state, settings)
        second[name] = float(state[SECOND + "w"][0])
    assert second["yogi"] > 5 * second["adam"] > 0


@pytest.mark.parametrize("name", ["none", "momentum", "adam", "yogi", "adagrad"])
def test_a_resumed_run_has_the_same_bits(name: str, tmp_path: object) -> None:
    """State goes through a file in the middle of the run."""
    from safetensors.numpy import load, save

    settings = rule(name, lr=0.1)
    rng = np.random.default_rng(0)
    targets = [{"w": rng.standard_normal((3, 4)).astype(np.float32)} for _ in range(6)]

    def run(stop: bool) -> Arrays:
        x: Arrays = {"w": np.zeros((3, 4), np.float32)}
        state: Arrays = {}
        for number, target in enumerate(targets):
            if stop and number == 3:
                x, state = load(save(x)), load(save(state)) if state else {}
            x, state = server_step(x, target, state, settings)
        return x | state

    straight, resumed = run(stop=False), run(stop=True)
    assert straight.keys() == resumed.keys()
    for key in straight:
        assert straight[key].tobytes() == resumed[key].tobytes()
        assert key == "w" or straight[key].dtype == np.float64


def test_types_are_kept_and_integers_taken_from_the_average() -> None:
    old = {"w": np.zeros(2, np.float16), "n": np.array([3])}
    mean = {"w": np.ones(2, np.float16), "n": np.array([7])}
    x, state = server_step(old, mean, {}, rule("adam"))
    assert x["w"].dtype == np.float16 and x["n"].dtype == np.int64 and x["n"][0] == 7
    assert set(state) == {FIRST + "w", SECOND + "w"}
    assert old["w"].tolist() == [0, 0]  # arguments are left alone


def test_what_does_not_fit_is_refused() -> None:
    w = {"w": np.zeros(2, np.float32)}
    with pytest.raises(UserError, match="differ in: v"):
        server_step(w, w | {"v": np.zeros(1)}, {}, rule("adam"))
    with pytest.raises(UserError, match="Averaged array 'w'"):
        server_step(w, {"w": np.zeros(3, np.float32)}, {}, rule("adam"))
    with pytest.raises(UserError, match="another model"):
        server_step(w, w, {FIRST + "w": np.zeros(3)}, rule("adam"))
