"""How many bytes does a round move for a small ViT? Only the head and the centroids may weigh anything."""

from __future__ import annotations

import numpy as np
import pytest

from client.work.trainer import TRAINING_METRICS
from common import wire
from common.clustering.spectral import PatchScatter
from common.models.head import build_head, init_centroids, state_to_numpy
from common.settings.load import load_config, to_wire
from server.states import ModelState
from tests.support.local_grid import set_identity

VIT_SMALL = 384
LIMIT = 0.82e6


@pytest.mark.parametrize(("dtype", "limit"), [("float32", LIMIT), ("float16", LIMIT / 2)])
def test_a_small_vits_head_and_centroids_fit_the_promise(dtype: str, limit: float) -> None:
    set_identity()
    config = load_config({"preset": "fuss-ref", "model.clusters": 27, "wire.dtype": dtype})
    head = state_to_numpy(build_head(VIT_SMALL, config.model, 0))
    assert sum(array.size for array in head.values()) == 201_740
    centroids = init_centroids(27, config.model.dim, 0)
    task = wire.Task(3, to_wire(config), "run-key-0123456789", ModelState(head, centroids).groups_for("a"))
    counts = np.zeros(27, np.int64)
    update = wire.Update(
        "hospital-a",
        "0" * 64,
        {"head": head, "centroids": {"centroids": centroids, "counts": counts}},
        dict.fromkeys(TRAINING_METRICS, 1.0),
        {"images": 1, "batches": 1},
    )
    down = wire.payload_bytes(wire.encode_task(task, dtype))
    up = wire.payload_bytes(wire.encode_update(update, dtype))
    assert max(up, down) <= limit, (up, down)


def test_the_one_large_message_of_the_spectral_objective_fits_too() -> None:
    set_identity()
    arrays = {name: np.zeros(shape, np.float32) for name, shape in PatchScatter.shapes(VIT_SMALL).items()}
    update = wire.Update("hospital-a", "0" * 64, {"scatter": arrays}, {}, {"images": 1, "batches": 1})
    assert wire.payload_bytes(wire.encode_update(update, "float32")) <= LIMIT
    assert wire.payload_bytes(wire.encode_update(update, "float16")) <= LIMIT / 2
