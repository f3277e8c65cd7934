"""Scenarios of FedDrive: clients of a driving data set with towns, weathers and cars, drawn from a seed.

The published benchmark (FedDrive) divides IDDA's domains in two: those of one unseen town, weather or car are
scored only; of every other domain four fifths train and one fifth is kept for scoring. Its own lists can be
read; these functions make divisions of the same kind from a seed. They are pure: domains in, images out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from common.errors import UserError
from common.seeds import numpy_generator

UNSEEN: dict[str, tuple[int, str]] = {"country": (0, "T07"), "rainy": (1, "HRN"), "bus": (2, "B")}
"""What no client holds: which part of TOWN_WEATHER_CAR has which value."""

DISTRIBUTIONS = ("heterogeneous", "uniform", "class-imbalance")
Domains = Mapping[str, Sequence[str]]  # domain -> images
_Clients = dict[str, list[str]]  # client -> images
_TEST_SHARE = 5
_DOMAINS_PER_CLIENT = 4


def is_unseen(domain: str, scenario: str) -> bool:
    """Return whether a domain TOWN_WEATHER_CAR is kept from the clients in a scenario of `UNSEEN`."""
    parts = domain.split("_")
    if len(parts) != 3 or not all(parts):
        raise UserError(
            f"The domain {domain!r} is not named TOWN_WEATHER_CAR, such as T01_CN_A; restore the folder's name."
        )
    position, value = UNSEEN[scenario]
    return parts[position] == value


def hold_out(domains: Domains, seed: int) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Divide every domain at random into images for training and for scoring, 4 to 1 (48 and 12 of 60).

    A domain of fewer than five images is trained on as a whole.
    """
    train: dict[str, list[str]] = {}
    test: dict[str, list[str]] = {}
    for domain, images in domains.items():
        order = numpy_generator(seed, "idda", "hold-out", domain).permutation(len(images))
        kept = set(order[: len(images) // _TEST_SHARE].tolist())
        train[domain] = [image for i, image in enumerate(images) if i not in kept]
        test[domain] = [image for i, image in enumerate(images) if i in kept]
    return train, test


def uniform(train: Domains, seed: int) -> _Clients:
    """Deal every domain out, one image a client: all clients see as many domains as they have images.

    There are as many clients as domains; with domains of one size each holds that many images, of
    that many domains where there are enough.
    """
    clients = [f"client_{i + 1}" for i in range(len(train))]
    rng = numpy_generator(seed, "idda", "uniform")
    names = list(train)
    dealt: _Clients = {client: [] for client in clients}
    turn = 0
    for d in rng.permutation(len(names)):
        images = train[names[d]]
        for i in rng.permutation(len(images)):
            dealt[clients[turn % len(clients)]].append(images[i])
            turn += 1
    return {client: sorted(images) for client, images in dealt.items() if images}


def class_imbalance(
    train: Domains,
    scenario: str,
    seed: int,
    characteristic: Callable[[list[str]], npt.NDArray[np.int64]],
) -> _Clients:
    """Give every client images of few classes from three to five domains (all, where there are fewer).

    Domains are grouped at random by about four. The images of a group are ordered by the class that
    stands out in them (``characteristic``: int [N] of N images) and cut into as many clients as the
    group has domains.
    """
    rng = numpy_generator(seed, "idda", "class-imbalance")
    names = [list(train)[i] for i in rng.permutation(len(train))]
    every = [image for name in names for image in train[name]]
    standing_out = dict(zip(every, characteristic(every).tolist(), strict=True))
    clients: _Clients = {}
    groups = max(1, round(len(names) / _DOMAINS_PER_CLIENT))
    for group in np.array_split(np.arange(len(names)), groups):
        images = [image for g in group for image in train[names[g]]]
        images = [images[i] for i in rng.permutation(len(images))]
        images.sort(key=standing_out.__getitem__)
        for part in np.array_split(np.arange(len(images)), len(group)):
            clients[f"client_{scenario}_{len(clients) + 1}"] = sorted(images[i] for i in part)
    return clients
