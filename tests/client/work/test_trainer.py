"""Does a site's round train what it should, from its own draws, and keep to itself what stays?"""

from __future__ import annotations

import builtins
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from client.work.trainer import TRAINING_METRICS, LocalResult, count_steps, epochs_of, train_local
from common.features.source import Features, Views
from common.losses.anchoring import model_contrastive_term, squared_distance
from common.losses.extra_terms import build_objective
from common.models.head import build_head, init_centroids, load_numpy, state_to_numpy
from common.settings.load import load_config
from common.settings.schema import RunConfig
from common.settings.unsupervised import Local

GRID = (3, 4)
BASE = {
    "loss.objective": "correspondence",
    "model.nonlinear": True,
    "model.dim": 6,
    "model.clusters": 4,
    "loss.samples": 3,
    "loss.negatives": 2,
    "local.steps": 5,
    "local.batch": 4,
    "local.neighbours": 2,
    "centroids.merge": "mean",
}


def settings(**changes: Any) -> RunConfig:
    return load_config(
        BASE | {key.replace("__", ".").replace("_", "-"): value for key, value in changes.items()}
    )


class Recorder(Features):
    """Features in memory that remember which images were asked for."""

    asked: list[list[int]]

    def batch(self, indices: Any) -> torch.Tensor:
        self.asked.append([int(index) for index in indices])
        return super().batch(indices)


def features(images: int = 10, seed: int = 0) -> Recorder:
    generator = np.random.default_rng(seed)
    modes = generator.standard_normal((4, 8)) * 2
    tokens = modes[generator.integers(0, 4, (images, 12))] + 0.3 * generator.standard_normal((images, 12, 8))
    found = Recorder.from_arrays(tokens.astype(np.float32), GRID)
    found.asked = []
    return found


def train(
    config: RunConfig,
    source: Features | None = None,
    round_number: int = 1,
    site: str = "north",
    state: dict[str, np.ndarray] | None = None,
    head: dict[str, np.ndarray] | None = None,
    *,
    fixed_centroids: bool = False,
) -> LocalResult:
    source = features() if source is None else source
    start = state_to_numpy(build_head(source.channels, config.model, 0)) if head is None else head
    centroids = init_centroids(config.model.clusters, config.model.dim, 0)
    return train_local(
        source, start, centroids, config, round_number, site, state, fixed_centroids=fixed_centroids
    )


def same(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> bool:
    return one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


def test_the_loss_falls_and_everything_asked_for_comes_back() -> None:
    config = settings(local__steps=40, local__lr=5e-3)
    early, late = train(settings(local__steps=5)), train(config)
    assert late.metrics["loss"] < early.metrics["loss"]
    assert late.metrics["mean_cosine"] > early.metrics["mean_cosine"]
    assert tuple(late.metrics) == TRAINING_METRICS and all(math.isfinite(v) for v in late.metrics.values())
    assert late.counts.dtype == np.int64 and late.counts.sum() == 10 * 12
    assert late.centroids.shape == (4, 6) and late.centroids.dtype == np.float32
    assert late.shared == {} and late.state == {}
    assert not same(late.head, state_to_numpy(build_head(8, config.model, 0)))


def test_draws_follow_from_seed_site_and_round_alone() -> None:
    config = settings()
    torch.manual_seed(1)
    first = train(config)
    torch.manual_seed(2)
    assert same(first.head, train(config).head)
    for other in (
        train(config, site="south"),
        train(config, round_number=2),
        train(settings(seed=1), head=state_to_numpy(build_head(8, config.model, 0))),
    ):
        assert not same(first.head, other.head)


@pytest.mark.parametrize(("images", "batch"), [(10, 4), (9, 8), (3, 8), (8, 8)])
def test_every_image_is_used_once_per_epoch(images: int, batch: int) -> None:
    batches = epochs_of(images, batch, torch.Generator().manual_seed(0))
    per_epoch = math.ceil(images / batch)
    epochs = [list(itertools.chain(*itertools.islice(batches, per_epoch))) for _ in range(3)]
    assert all(sorted(epoch) == list(range(images)) for epoch in epochs)
    assert epochs[0] != epochs[1] or images < 4
    assert count_steps(Local(steps=0, epochs=2, batch=batch), images) == 2 * per_epoch
    assert count_steps(Local(steps=7), images) == 7


def test_positives_are_neighbours_of_the_anchors() -> None:
    source = features()
    train(settings(local__steps=6), source)
    table = source.neighbours(2)
    for anchors, positives in zip(source.asked[0:12:2], source.asked[1:12:2], strict=True):
        assert all(p in table[a] for a, p in zip(anchors, positives, strict=True))


def test_neighbours_under_dropout_follow_from_seed_and_site_in_every_round() -> None:
    asked = []

    class Asked(Recorder):
        def neighbours(self, k: int, dropout: float = 0.0, seed: int = 0) -> np.ndarray:
            asked.append((k, dropout, seed))
            return super().neighbours(k, dropout, seed)

    source = Asked.from_arrays(features().tokens, GRID)
    source.asked = []
    config = settings(local__neighbour_dropout=0.25)
    for changes in ({}, {"round_number": 2}, {"site": "south"}):
        train(config, source, **changes)
    train(settings(local__neighbour_dropout=0.25, seed=1), source)
    assert {(k, dropout) for k, dropout, _ in asked} == {(2, 0.25)}
    first, second_round, elsewhere, other_seed = (seed for *_, seed in asked)
    assert first == second_round and len({first, elsewhere, other_seed}) == 3
    train(settings(), source)
    assert asked[-1][1] == 0


@pytest.mark.parametrize("images", [1, 2, 5])
def test_small_shards_train_too(images: int) -> None:
    found = train(settings(local__steps=0, local__epochs=2), features(images))
    assert math.isfinite(found.metrics["loss"]) and found.metrics["steps"] == 2 * math.ceil(images / 4)


def test_an_empty_shard_is_refused() -> None:
    empty = Features(np.zeros((0, 12, 8), np.float32), np.zeros((0, 8), np.float32), GRID, "")
    with pytest.raises(ValueError, match="north has no image"):
        train(settings(), empty)


def test_fixed_centroids_are_left_to_the_server() -> None:
    start = init_centroids(4, 6, 0)
    fixed, moved = train(settings(), fixed_centroids=True), train(settings())
    np.testing.assert_array_equal(fixed.centroids, start)
    assert fixed.metrics["displacement"] == 0
    assert not np.array_equal(moved.centroids, start) and moved.metrics["displacement"] > 0
    assert same(fixed.head, moved.head)  # centroids see detached codes: the head does not notice


def test_displacement_is_the_length_of_the_path() -> None:
    one = train(settings(local__steps=1))
    moved = np.linalg.norm(one.centroids - init_centroids(4, 6, 0))
    assert one.metrics["displacement"] == pytest.approx(moved, rel=1e-5)
    many = train(settings(local__steps=20))
    assert many.metrics["displacement"] > np.linalg.norm(many.centroids - init_centroids(4, 6, 0))


def test_moments_survive_a_round_only_if_asked_for() -> None:
    """Two rounds of one step with kept moments are two steps of one optimiser, up to the draws."""
    keep = settings(local__keep_optimizer=True, local__steps=3)
    first = train(keep)
    assert {key.split("/")[0] for key in first.state} == {"adam", "adam-centroids"}
    assert all(int(value) == 3 for key, value in first.state.items() if key.endswith("/step"))
    kept = train(keep, round_number=2, state=first.state, head=first.head)
    fresh = train(keep, round_number=2, state=None, head=first.head)
    ignored = train(settings(local__steps=3), round_number=2, state=first.state, head=first.head)
    assert not same(kept.head, fresh.head)
    assert same(ignored.head, fresh.head)
    assert all(int(value) == 6 for key, value in kept.state.items() if key.endswith("/step"))


def test_kept_moments_of_another_head_are_refused() -> None:
    keep = settings(local__keep_optimizer=True)
    state = train(keep).state
    wrong = {key: value[:1] if value.ndim else value for key, value in state.items()}
    with pytest.raises(ValueError, match="delete this site's state"):
        train(keep, state=wrong)


def test_prox_pulls_towards_the_received_head() -> None:
    start = state_to_numpy(build_head(8, settings().model, 0))

    def drift(result: LocalResult, prefix: str = "") -> float:
        return sum(float(np.square(result.head[n] - start[n]).sum()) for n in start if n.startswith(prefix))

    free = train(settings(local__steps=20))
    held = train(settings(local__steps=20, local__prox_mu=50.0))
    partly = train(settings(local__steps=20, local__prox_mu=50.0, local__prox_parameters="nonlinear"))
    assert drift(held) < 0.5 * drift(free)
    assert held.metrics["prox"] > 0 and free.metrics["prox"] == 0
    assert held.metrics["loss"] == pytest.approx(held.metrics["objective"] + held.metrics["prox"], abs=1e-5)
    assert drift(partly, "nonlinear.") < 0.5 * drift(free, "nonlinear.")
    assert drift(partly, "linear.") > 2 * drift(held, "linear.")


def test_prox_distance_by_hand() -> None:
    now, then = (build_head(2, load_config(BASE).model, 0) for _ in range(2))
    with torch.no_grad():
        now.linear.bias += 0.5  # 6 entries
        assert now.nonlinear is not None
        now.nonlinear[0].bias += 2.0  # 2 entries
    assert squared_distance(now, then, "all").item() == pytest.approx(6 * 0.25 + 2 * 4)
    assert squared_distance(now, then, "nonlinear").item() == pytest.approx(2 * 4)


def test_moon_equals_the_slow_loop_and_its_gradient_is_not_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    codes, near, far = (torch.randn(2, 5, 3, generator=generator) for _ in range(3))
    codes.requires_grad_()
    expected = 0.0
    for image, patch in np.ndindex(2, 5):
        z, g, p = (x[image, patch].detach().numpy().astype(float) for x in (codes, near, far))
        a = z @ g / np.linalg.norm(z) / np.linalg.norm(g) / 0.5
        b = z @ p / np.linalg.norm(z) / np.linalg.norm(p) / 0.5
        expected -= math.log(math.exp(a) / (math.exp(a) + math.exp(b))) / 10
    loss = model_contrastive_term(codes, near, far, 0.5)
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    loss.backward()
    assert codes.grad is not None and float(codes.grad.norm()) > 1e-2
    # the published form: both references are one network, nothing is learned
    codes.grad = None
    no_op = model_contrastive_term(codes, near, near, 0.5)
    no_op.backward()
    assert no_op.item() == pytest.approx(math.log(2))
    assert float(codes.grad.norm()) < 1e-7


def test_moon_keeps_the_whole_previous_head_on_the_site_and_moves_training() -> None:
    moon = settings(local__moon_weight=1.0)
    first = train(moon)
    assert first.metrics["moon"] == 0  # no previous head yet
    assert same({key.removeprefix("previous/"): value for key, value in first.state.items()}, first.head)
    merged = state_to_numpy(build_head(8, moon.model, 5))
    second = train(moon, round_number=2, state=first.state, head=merged)
    without = train(settings(), round_number=2, head=merged)
    assert second.metrics["moon"] > 0
    assert not same(second.head, without.head)
    assert "moon" in TRAINING_METRICS and not any(key.startswith("previous") for key in second.head)


def test_a_loss_that_explodes_names_round_step_and_cause() -> None:
    source = features()
    source.tokens[2] = np.nan
    with pytest.raises(ValueError, match=r"north, round 7, step 1 of 3.*feature cache"):
        train(settings(local__steps=3, local__batch=10), source, round_number=7)
    with pytest.raises(ValueError, match=r"local\.lr = 1e\+30"):
        train(settings(local__lr=1e30, local__steps=30))


def test_what_the_server_sends_is_checked() -> None:
    config = settings()
    head = state_to_numpy(build_head(8, config.model, 0))
    head["linear.bias"][0] = np.inf
    with pytest.raises(ValueError, match=r"linear\.bias' holds NaN or infinity"):
        train(config, head=head)
    with pytest.raises(ValueError, match=r"\[K, 6\] were expected"):
        train_local(
            features(), state_to_numpy(build_head(8, config.model, 0)), np.ones((4, 5)), config, 1, "n"
        )


def test_training_opens_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels are files; whoever trains from features has no reason to open any."""
    source = features()
    config = settings()
    head = state_to_numpy(build_head(8, config.model, 0))

    def refuse(*arguments: object, **keywords: object) -> None:
        raise AssertionError(f"training opened {arguments}")

    monkeypatch.setattr(builtins, "open", refuse)
    train(config, source, head=head)


def test_the_trained_head_is_the_one_that_was_counted() -> None:
    config = settings()
    found = train(config)
    head = build_head(8, config.model, 1)
    load_numpy(head, found.head)
    codes = head.eval()(features().batch(range(10))).flatten(2).transpose(1, 2).flatten(0, 1)
    means = torch.nn.functional.normalize(torch.from_numpy(found.centroids), dim=1)
    labels = (codes @ means.T).argmax(1)
    np.testing.assert_array_equal(found.counts, torch.bincount(labels, minlength=4).numpy())


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("objective", ["smoothness", "modularity"])
def test_other_objectives_train_head_and_shared_state(objective: str, fixed: bool) -> None:
    config = settings(
        loss__objective=objective, loss__codebook=5, loss__projection=3,
        loss__reconstruction_weight=0.1, local__lr=1e-2, local__clip_norm=1.0,
    )  # fmt: skip
    source = features()
    start = state_to_numpy(build_head(8, config.model, 0))
    shared = state_to_numpy(build_objective(config, 8))
    centroids = init_centroids(4, 6, 0)
    results = []
    for round_number in (1, 2):
        found = train_local(
            source, start, centroids, config, round_number, "north", shared=shared, fixed_centroids=fixed
        )
        assert {n: a.shape for n, a in found.shared.items()} == {n: a.shape for n, a in shared.items()}
        assert not same(found.shared, shared) and not same(found.head, start)
        assert np.isfinite(found.metrics["loss"])
        assert np.array_equal(found.centroids, centroids) == fixed
        start, shared = found.head, found.shared
        results.append(found)
    codebook = [found.shared.get("main.codebook") for found in results]
    if objective == "modularity":  # fitted in the first round, kept after
        np.testing.assert_array_equal(codebook[0], codebook[1])


def test_the_smoothness_teacher_becomes_the_centroids() -> None:
    config = settings(loss__objective="smoothness", loss__momentum=0.5)
    found = train(config)
    assert found.metrics["displacement"] > 0
    np.testing.assert_allclose(np.linalg.norm(found.centroids, axis=1), 1, atol=0.1)
    still = train(settings(loss__objective="smoothness", loss__momentum=1.0))
    assert still.metrics["displacement"] == 0
    start = init_centroids(4, 6, 0)
    expected = start / np.linalg.norm(start, axis=1, keepdims=True)
    np.testing.assert_allclose(still.centroids, expected, atol=1e-6)


def test_centroids_may_follow_modularity() -> None:
    found = train(settings(centroids__local="modularity"))
    assert found.metrics["displacement"] > 0
    assert not np.array_equal(found.centroids, train(settings()).centroids)


def test_clipping_changes_the_steps_only_if_it_binds() -> None:
    free, loose, tight = (train(settings(local__clip_norm=limit)).head for limit in (0.0, 1e6, 1e-6))
    assert same(free, loose) and not same(free, tight)


def test_what_features_do_not_hold_is_named() -> None:
    with pytest.raises(ValueError, match="colours"):
        train(settings(loss__crf_weight=1.0))
    with pytest.raises(ValueError, match="augmented views"):
        train(settings(loss__augmentation_weight=1.0, cache__views=1))


def test_terms_on_colours_and_views_train() -> None:
    generator = np.random.default_rng(3)
    base = features()
    source = Features.from_arrays(base.tokens, GRID, colours=generator.uniform(0, 1, (10, 12, 3)))
    source._views = Views(base.tokens[None] + np.float32(0.1), seed=0, tiled=True)
    plain = train(settings(), source)
    crf = train(settings(loss__crf_weight=0.5), source)
    views = train(settings(loss__augmentation_weight=0.5, cache__views=1), source)
    assert not same(plain.head, crf.head) and not same(plain.head, views.head)


def test_the_oracle_learns_what_the_labels_say() -> None:
    found = features()
    labels = np.eye(3, dtype=np.float32)[np.random.default_rng(1).integers(0, 3, (10, 12))]
    oracle = settings(loss__correspondence__signal="labels", centroids__merge="lloyd")
    plain = settings(centroids__merge="lloyd")
    start = state_to_numpy(build_head(8, oracle.model, 0)), init_centroids(4, 6, 0)

    def trained(config: RunConfig, signal: np.ndarray) -> LocalResult:
        return train_local(found, *start, config, 1, "a", {}, fixed_centroids=True, labels=lambda: signal)

    heads = [
        trained(oracle, labels).head,
        trained(oracle, labels[::-1].copy()).head,
        trained(plain, labels).head,
    ]
    weights = [head["linear.weight"] for head in heads]
    assert not np.array_equal(weights[0], weights[1]) and not np.array_equal(weights[0], weights[2])
    np.testing.assert_array_equal(weights[2], trained(plain, labels[::-1].copy()).head["linear.weight"])
