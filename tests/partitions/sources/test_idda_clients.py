"""Do seen and unseen domains, and the three distributions, come out as the published benchmark's do?"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from common.errors import UserError
from partitions.sources.idda_clients import UNSEEN, class_imbalance, hold_out, is_unseen, uniform

DOMAINS = [
    f"T0{town}_{weather}_{car}" for town, weather, car in product(range(1, 8), ("CN", "CS", "HRN"), "ABJMV")
]
DOMAINS.remove("T07_CN_M")
IDDA = {domain: [f"{domain}/RGB/{i}_{domain}.jpg" for i in range(60)] for domain in DOMAINS}


@pytest.mark.parametrize(
    ("scenario", "clients", "same", "different"),
    [("country", 90, 1080, 840), ("rainy", 69, 828, 2100), ("bus", 83, 996, 1260)],
)
def test_the_published_counts(scenario: str, clients: int, same: int, different: int) -> None:
    seen = {domain: images for domain, images in IDDA.items() if not is_unseen(domain, scenario)}
    train, test = hold_out(seen, seed=0)
    assert len(train) == clients and {len(images) for images in train.values()} == {48}
    assert sum(map(len, test.values())) == same
    assert sum(len(images) for domain, images in IDDA.items() if is_unseen(domain, scenario)) == different


def test_holding_out_follows_the_seed_and_loses_nothing() -> None:
    train, test = hold_out(IDDA, seed=3)
    assert (train, test) == hold_out(IDDA, seed=3) and train != hold_out(IDDA, seed=4)[0]
    for domain, images in IDDA.items():
        assert sorted(train[domain] + test[domain]) == sorted(images)


def test_a_domain_does_not_change_what_is_held_out_of_another() -> None:
    alone = hold_out({"T01_CN_A": IDDA["T01_CN_A"]}, seed=3)
    assert alone[1]["T01_CN_A"] == hold_out(IDDA, seed=3)[1]["T01_CN_A"]


def _domains(images: list[str]) -> set[str]:
    return {image.split("/")[0] for image in images}


def test_uniform_clients_hold_one_image_of_48_domains() -> None:
    train, _ = hold_out({d: i for d, i in IDDA.items() if not is_unseen(d, "country")}, seed=0)
    clients = uniform(train, seed=0)
    assert list(clients)[:2] == ["client_1", "client_2"] and len(clients) == 90
    for images in clients.values():
        assert len(images) == 48 and len(_domains(images)) == 48
    assert sorted(i for images in clients.values() for i in images) == sorted(
        i for images in train.values() for i in images
    )
    assert clients != uniform(train, seed=1)


def test_class_imbalance_takes_few_domains_and_sorts_by_class() -> None:
    train, _ = hold_out({d: i for d, i in IDDA.items() if not is_unseen(d, "bus")}, seed=0)

    def classes(images: list[str]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.asarray([int(image.split("/")[-1].split("_")[0]) % 4 for image in images], dtype=np.int64)

    clients = class_imbalance(train, "bus", 0, classes)
    assert len(clients) == len(train) and next(iter(clients)) == "client_bus_1"
    assert sorted(i for images in clients.values() for i in images) == sorted(
        i for images in train.values() for i in images
    )
    for images in clients.values():
        assert len(images) == 48 and 3 <= len(_domains(images)) <= 5
    kinds = [len(set(classes(images).tolist())) for images in clients.values()]
    assert np.mean(kinds) < 2.5, "of four classes; an even deal would show all four nearly always"


def test_a_domain_with_another_name_is_refused() -> None:
    assert set(UNSEEN) == {"country", "rainy", "bus"}
    with pytest.raises(UserError, match="'town1' is not named TOWN_WEATHER_CAR"):
        is_unseen("town1", "bus")
