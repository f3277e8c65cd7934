"""Are the scores of sites' own models kept apart from the score of a model, by hand?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from common.data.classes import ClassTable
from common.evaluation.metrics import Confusion
from common.evaluation.networks import NetworkEvaluation
from common.evaluation.score import Score, class_means, scored, site_fields
from common.settings.load import load_config
from common.settings.schema import RunConfig
from server.evaluation.clusters import ClusterScorer
from server.evaluation.networks import NetworkScorer, set_fields

TABLE = ClassTable("two", ("x", "y"), ((0, 0, 0), (9, 9, 9)))
# the same halves of an image, numbered the other way round: each by itself is 3 of 4 right, their sum says nothing
COUNTS = {"a": np.array([[3, 1], [1, 3]]), "b": np.array([[1, 3], [3, 1]])}


def config_of(**settings: Any) -> RunConfig:
    given = {key.replace("__", "."): value for key, value in settings.items()}
    return load_config({"preset": "fuss-ref", "eval.where": "sites", "model.clusters": 2} | given)


@pytest.mark.parametrize("share", ["none", "head", "centroids"])
def test_counts_of_models_that_are_not_the_same_are_matched_one_by_one(share: str) -> None:
    found = ClusterScorer(config_of(centroids__share=share), TABLE).score_confusions(COUNTS).fields()
    assert found["miou"] is found["accuracy"] is found["per_class_iou"] is None and "confusion" not in found
    assert found["site_miou"] == {"a": 0.6, "b": 0.6}  # 3 in common of 5
    assert found["site_accuracy"] == {"a": 0.75, "b": 0.75}
    assert found["site_per_class_iou"] == {"x": 0.6, "y": 0.6}


def test_counts_of_one_model_are_summed_and_matched_once() -> None:
    found = ClusterScorer(config_of(), TABLE).score_confusions(COUNTS).fields()
    assert found["confusion"] == [[4, 4], [4, 4]] and found["accuracy"] == 0.5
    assert "site_miou" not in found


def test_networks_that_are_not_shared_have_no_common_score_either() -> None:
    both = load_config({"task": "supervised", "eval.where": "sites"})
    found = NetworkScorer(both, TABLE).score_confusions(COUNTS).fields()
    assert found["accuracy"] == 0.5 and found["site_accuracy"] == {"a": 0.75, "b": 0.25}
    alone = load_config({"task": "supervised", "eval.where": "sites", "centroids.share": "none"})
    found = NetworkScorer(alone, TABLE).score_confusions(COUNTS).fields()
    assert found["miou"] is None and found["site_accuracy_mean"] == 0.5


def test_a_site_without_a_count_has_no_score_and_ends_nothing() -> None:
    counts = COUNTS | {"c": np.zeros((2, 2), np.int64)}
    own = ClusterScorer(config_of(centroids__share="none"), TABLE).score_confusions(counts).fields()
    assert own["site_miou"] == {"a": 0.6, "b": 0.6}
    both = load_config({"task": "supervised", "eval.where": "sites"})
    found = NetworkScorer(both, TABLE).score_confusions(counts).fields()
    assert set(found["site_miou"]) == {"a", "b"} and found["miou"] is not None
    evaluation = NetworkEvaluation(Confusion(2, 2, COUNTS["a"]))
    evaluation.domains |= {name: Confusion(2, 2, counts[name]) for name in ("a", "c")}
    record = set_fields(evaluation, TABLE)
    assert record["domain_miou"] == {"a": 0.6, "c": None} and record["domain_miou_mean"] == 0.6
    assert scored(Confusion(2, 2), TABLE, "identity").miou is None


def test_a_class_counts_where_it_is_in_the_labels() -> None:
    means = class_means([{"x": 0.2, "y": None, "z": None}, {"x": 0.6, "y": 0.5, "z": None}])
    assert means == {"x": pytest.approx(0.4), "y": 0.5, "z": None}


def test_fields_by_hand() -> None:
    found = site_fields(
        {
            "a": {"miou": 0.2, "accuracy": 0.5, "per_class_iou": {"x": 0.2}},
            "b": {"miou": 0.4, "accuracy": 0.7, "per_class_iou": {"x": 0.4}},
        }
    )
    assert found["site_miou_mean"] == pytest.approx(0.3) and found["site_miou_std"] == pytest.approx(0.1)
    assert found["site_accuracy_mean"] == pytest.approx(0.6)
    assert all(key.startswith("site_") for key in found)


def test_a_site_without_labels_is_not_taken_in() -> None:
    score = Score()
    score.add_site("a", Score(mean_cosine=0.5))
    assert "site_miou" not in score.fields()


def test_a_set_without_a_labelled_pixel_is_said_to_have_none() -> None:
    score = Score(miou=0.5, accuracy=0.6, sets={"ts1": {"miou": 0.5}, "ts2": {"miou": None}})
    assert score.progress() == ["ts1 mIoU 0.500", "ts2 has no labelled pixel"]
