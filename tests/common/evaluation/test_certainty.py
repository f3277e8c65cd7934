"""Are the pixels that are kept the most certain ones of each cluster, and certain by how far the next best is?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from common.data.classes import IGNORE
from common.data.manifest import read_shard
from common.evaluation.certainty import LEVELS, Thresholds, certain_predictions, margins
from common.evaluation.clusters import code_of, predict
from common.features.cache import open_features
from common.models.segmenter import Geometry, Segmenter
from common.settings.load import load_config


def test_bits_of_margins_sort_like_margins() -> None:
    values = np.arange(LEVELS, dtype=np.uint16).view(np.float16)
    assert values[0] == 0 and values[-1] == np.inf and (np.diff(values[:-1].astype(np.float64)) > 0).all()


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.8, 1.0])
def test_the_share_that_is_kept_is_that_of_a_sort(keep: float) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (4, 50, 60)).astype(np.uint8)
    labels[0, :9] = IGNORE
    leads = rng.random((4, 50, 60)).astype(np.float16)
    thresholds = Thresholds(3)
    for one, lead in zip(labels, leads, strict=True):
        thresholds.add(one, lead)
    least = thresholds.least(keep)
    for cluster in range(3):
        ordered = np.sort(leads[labels == cluster])[::-1]
        wanted = int(np.ceil(keep * len(ordered)))
        assert least[cluster] == ordered[wanted - 1]


def test_a_cluster_without_pixels_keeps_none_and_harms_none() -> None:
    thresholds = Thresholds(2)
    thresholds.add(np.zeros((2, 2), dtype=np.uint8), np.array([[0, 1], [2, 3]], dtype=np.float16))
    assert thresholds.least(0.5)[0] == 2


def test_margins_are_the_lead_over_the_next_best() -> None:
    segmenter = Segmenter(nn.Identity(), torch.randn(5, 7), Geometry(96, 64))
    code = torch.randn(1, 7, 6, 4)
    size = (150, 90)
    labels = predict(segmenter, code, size)
    best = segmenter.logits_of_code(code, size)[0].topk(2, dim=0).values
    np.testing.assert_allclose(margins(segmenter, code, labels), (best[0] - best[1]).numpy(), atol=2e-3)
    others = (labels + 1) % 5
    assert (margins(segmenter, code, others.astype(np.uint8)) == 0).all()


@pytest.mark.parametrize("colors", [0.0, 1.0])
def test_predictions_are_those_that_score_and_what_was_not_seen_is_ignored(
    scenes: Path, tmp_path: Path, colors: float
) -> None:
    config = load_config(
        {"model.weights": "random", "model.height": 65, "model.width": 65, "model.crop": "center"}
        | {"refine.colors": colors, "refine.steps": 2, "model.clusters": 4}
    )
    shard = read_shard(scenes / "eval.jsonl")
    features = open_features(shard, config.model, config.cache, tmp_path)
    torch.manual_seed(0)
    segmenter = Segmenter(nn.Identity(), torch.randn(4, features.channels), Geometry.of(config.model))
    for index, labels, leads in certain_predictions(segmenter, features, shard, config, batch=4):
        assert labels.shape == leads.shape == (72, 96)
        assert (labels[:, :12] == IGNORE).all() and (labels[:, 84:] == IGNORE).all()
        assert (labels[:, 12:84] != IGNORE).all() and (leads >= 0).all() and not leads[:, :12].any()
        if not colors:
            seen = predict(segmenter, code_of(segmenter, features, [index]), (72, 72))
            assert np.array_equal(labels[:, 12:84], seen)
