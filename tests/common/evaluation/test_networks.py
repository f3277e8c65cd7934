"""Are the counts of a network those of a slow loop, at the label's own size, and added up in one way only?"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from common.data.classes import ClassTable
from common.data.images import entry_pair
from common.data.manifest import Shard, read_shard
from common.errors import UserError
from common.evaluation.metrics import scores, sum_confusions
from common.evaluation.networks import (
    evaluate_network,
    predict_logits,
    predict_pixels,
)
from common.settings.network import Transforms

TABLE = ClassTable(
    "three", ("red", "green", "blue"), ((255, 0, 0), (0, 255, 0), (0, 0, 255)), {0: 0, 1: 1, 2: 2}
)
PLAIN = Transforms()
SITE_OF = {"a": "site-0", "b": "site-0", "c": "site-1"}


class Colour(nn.Module):
    """Says red, green or blue by the brightest channel, and its own number where asked to."""

    def __init__(self, stride: int = 1, says: int | None = None) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(5.0))
        self.stride, self.says = stride, says
        self.seen: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        self.seen.append(tuple(images.shape))
        if self.says is not None:
            images = torch.zeros_like(images)
            images[:, self.says] = 1
        return self.scale * images[..., :: self.stride, :: self.stride]


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    """Three pictures of three sizes and two domains; labels are noise, some of it ignored."""
    draw = np.random.default_rng(0)
    lines = []
    for name, (height, width), domain in (
        ("a", (12, 16), "day"),
        ("b", (9, 9), "night"),
        ("c", (12, 16), None),
    ):
        Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(
            tmp_path / f"{name}.png"
        )
        label = draw.choice([0, 1, 2, 255], (height, width)).astype(np.uint8)
        Image.fromarray(label).save(tmp_path / f"{name}-l.png")
        entry = {"image": f"{name}.png", "label": f"{name}-l.png", "domain": domain, "site": SITE_OF[name]}
        lines.append(json.dumps({key: value for key, value in entry.items() if value is not None}))
    (tmp_path / "m.jsonl").write_text("\n".join(lines) + "\n")
    return read_shard(tmp_path / "m.jsonl")


def slow(shard: Shard, indices: list[int]) -> np.ndarray:
    counts = np.zeros((3, 3), np.int64)
    for index in indices:
        image, label = entry_pair(shard, index, TABLE)
        for i, j in np.ndindex(*label.shape):
            if label[i, j] != 255:
                counts[int(image[i, j].argmax()), label[i, j]] += 1
    return counts


def test_counts_are_those_of_a_slow_loop_in_all_and_by_domain(shard: Shard) -> None:
    network = Colour().train()
    found = evaluate_network(lambda _: network, shard, TABLE, PLAIN, keep=[1])
    np.testing.assert_array_equal(found.confusion.matrix, slow(shard, [0, 1, 2]))
    assert sorted(found.domains) == ["day", "night"] and found.num_images == 3
    np.testing.assert_array_equal(found.domains["night"].matrix, slow(shard, [1]))
    assert sorted(found.sites) == ["site-0", "site-1"]
    np.testing.assert_array_equal(found.sites["site-0"].matrix, slow(shard, [0, 1]))
    assert list(found.predictions) == [1] and found.predictions[1].shape == (9, 9)


def test_every_image_has_its_own_network_and_an_order_may_be_given(shard: Shard) -> None:
    networks = [Colour(says=index) for index in range(3)]
    found = evaluate_network(lambda index: networks[index], shard, TABLE, PLAIN, order=[2, 0])
    totals = [sum(slow(shard, [index]).sum(axis=0)) for index in (0, 2)]
    np.testing.assert_array_equal(found.confusion.matrix.sum(axis=1), [totals[0], 0, totals[1]])
    assert found.num_images == 2 and networks[1].seen == []


def test_scores_do_not_depend_on_how_images_are_cut_into_parts(shard: Shard) -> None:
    network = Colour()
    whole = evaluate_network(lambda _: network, shard, TABLE, PLAIN).confusion
    parts = {
        str(index): evaluate_network(lambda _: network, shard, TABLE, PLAIN, order=[index]).confusion.matrix
        for index in (2, 0, 1)
    }
    np.testing.assert_array_equal(sum_confusions(parts).matrix, whole.matrix)
    assert scores(sum_confusions(parts), np.arange(3)).miou == scores(whole, np.arange(3)).miou
    each = [scores(sum_confusions({name: part}), np.arange(3)).miou for name, part in parts.items()]
    assert scores(whole, np.arange(3)).miou != pytest.approx(np.mean(np.array(each, float)))


def test_an_image_enters_at_the_size_of_the_settings_and_is_scored_at_its_own(shard: Shard) -> None:
    network = Colour(stride=2)
    image, _ = entry_pair(shard, 0, TABLE)
    small = Transforms(eval_height=6, eval_width=10)
    assert predict_pixels(network, image, small).shape == (12, 16)
    assert network.seen == [(1, 3, 6, 10)]
    logits = predict_logits(network, image, PLAIN, (30, 40))
    assert logits.shape == (3, 30, 40) and logits.dtype == torch.float32 and not logits.requires_grad
    expected = nn.functional.interpolate(
        5 * torch.from_numpy(image).permute(2, 0, 1)[None, :, ::2, ::2].float() / 255,
        size=(30, 40),
        mode="bilinear",
        align_corners=False,
    )
    torch.testing.assert_close(logits, expected[0])


def test_a_mirrored_view_is_averaged_as_a_probability(shard: Shard) -> None:
    class Left(Colour):
        """Sees red on the left half of whatever it is shown."""

        def forward(self, images: Tensor) -> Tensor:
            logits = torch.zeros_like(images)
            logits[:, 0, :, : images.shape[3] // 2] = self.scale
            return logits

    image, _ = entry_pair(shard, 0, TABLE)
    logits = predict_logits(Left(), image, PLAIN, flip=True)
    red = torch.tensor([5.0, 0, 0]).softmax(dim=0)
    expected = (red + torch.full((3,), 1 / 3)) / 2
    torch.testing.assert_close(logits.softmax(dim=0), expected[:, None, None].expand(3, 12, 16).contiguous())
    symmetric = Colour()
    one, both = (predict_pixels(symmetric, image, PLAIN, flip=flip) for flip in (False, True))
    np.testing.assert_array_equal(one, both)


def test_flip_reaches_the_counts(shard: Shard) -> None:
    class Half(Colour):
        """Green beats a red that only the first of two views shows."""

        def forward(self, images: Tensor) -> Tensor:
            self.seen.append(tuple(images.shape))
            says = (6.0, 5.0, 0.0) if len(self.seen) % 2 else (0.0, 5.0, 0.0)
            return torch.tensor(says)[None, :, None, None].expand(1, 3, *images.shape[2:])

    def counts(network: nn.Module, flip: bool) -> np.ndarray:
        found = evaluate_network(lambda _: network, shard, TABLE, PLAIN, order=[0], flip=flip)
        return np.asarray(found.confusion.matrix)

    counted = [counts(Half(), flip) for flip in (False, True)]
    assert counted[0][0].sum() > 0 and counted[0][1].sum() == 0
    assert counted[1][1].sum() > 0 and counted[1][0].sum() == 0


def test_a_label_of_another_size_is_refused(shard: Shard, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "c-l.png")
    with pytest.raises(UserError, match=r"c\.png is 16 x 12 but its label map .* is 5 x 5"):
        evaluate_network(lambda _: Colour(), shard, TABLE, PLAIN)
