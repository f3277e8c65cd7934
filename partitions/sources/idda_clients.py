"""Clients of IDDA: by its lists, in the reduced form and in the folders of domains, or drawn from a seed.

The published benchmark (FedDrive) divides IDDA's domains in two. Those of one unseen town, weather or car are scored
only; of every other domain four fifths train and one fifth is kept for scoring. Its own lists can be read. `hold_out`,
`uniform` and `class_imbalance` make divisions of the same kind from a seed: domains in, images out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from common.data.classes import ClassTable
from common.data.images import read_label
from common.data.manifest import Entry
from common.errors import UserError
from common.seeds import numpy_generator
from partitions.leaf import Clients, ListedImage, read_clients, read_names
from partitions.rules import characteristic_class
from partitions.sources.base import DIFFERENT, SAME, images_below, need_files, need_folder

_TRAIN = "train.json"
_TEST_USERS = {"test_user_same_domain": SAME, "test_user_diff_domain": DIFFERENT}
_TESTS = {SAME: "test_same_dom.txt", DIFFERENT: "test_diff_dom.txt"}
# what no client holds: which part of TOWN_WEATHER_CAR has which value
UNSEEN: dict[str, tuple[int, str]] = {"country": (0, "T07"), "rainy": (1, "HRN"), "bus": (2, "B")}
DISTRIBUTIONS = ("heterogeneous", "uniform", "class-imbalance")
_Domains = Mapping[str, Sequence[str]]  # domain -> images
_Drawn = dict[str, list[str]]  # client -> images
_TEST_SHARE = 5  # one image of so many is kept for scoring, as published: 12 of 60
_DOMAINS_PER_CLIENT = 4  # about, with imbalanced classes
_DOMAIN = re.compile(r"T\d\d_[A-Z]+_[A-Z]")  # a folder of a published domain


def domain_of(image: str) -> str:
    """Return TOWN_WEATHER_CAR of an image named ``NUMBER_TOWN_WEATHER_CAR``, whatever folder it is in."""
    return PurePosixPath(image).stem.partition("_")[2]


def label_of(image: str) -> str:
    """Return the label map of an image ``DOMAIN/RGB/NAME.jpg``."""
    path = PurePosixPath(image)
    return (path.parent.parent / "Semantic" / f"{path.stem}.png").as_posix()


def _image_of(name: str) -> str:
    """Return the image ``DOMAIN/RGB/NAME.jpg`` that a list means by a path or by a bare name."""
    if "/" in name:
        return name
    if not domain_of(name):
        raise UserError(
            f"The lists name {name!r}; expected NUMBER_TOWN_WEATHER_CAR, such as 152831_T01_CN_A, or a path below "
            "--root, so correct the name."
        )
    return f"{domain_of(name)}/RGB/{name}.jpg"


def in_domain(image: ListedImage) -> ListedImage:
    """Place an image in the folder of its domain; add the domain, and the label map where a list names none."""
    path = _image_of(image.x)
    return ListedImage(path, image.y or label_of(path), domain_of(path))


def _in_images(image: ListedImage) -> ListedImage:
    """Place an image in the folders of the reduced form."""
    return ListedImage(f"images/{image.x}.jpg", f"labels/{image.x}.png", domain_of(image.x))


def _placed(
    lists: tuple[Clients, Clients], place: Callable[[ListedImage], ListedImage]
) -> tuple[Clients, Clients]:
    train, tests = ({name: [*map(place, images)] for name, images in part.items()} for part in lists)
    return train, tests


def is_reduced(root: Path, other_lists: bool) -> bool:
    """Return whether ``root`` holds the reduced form; lists alone may lie above folders of domains too."""
    return (root / _TRAIN).is_file() and ((root / "images").is_dir() or not other_lists)


def reduced(root: Path) -> tuple[Clients, Clients]:
    """Return clients and what is scored of the reduced form, whose lists stand in its root."""
    if not (root / "images").is_dir():
        raise UserError(
            f"{root} holds {_TRAIN} but no folder images; complete the reduced form, or give --lists {root} if the "
            "images lie in folders of domains."
        )
    return _placed(_names(root, _TESTS), _in_images)


def listed(folder: Path) -> tuple[Clients, Clients]:
    """Return clients and what is scored of the folders of domains, by lists of names or the published ones.

    Raises `UserError` where ``folder`` holds neither, or lists of another kind.
    """
    return _placed(_names_there(folder) if (folder / _TRAIN).is_file() else _published(folder), in_domain)


def _names(folder: Path, tests: Iterable[str]) -> tuple[Clients, Clients]:
    """Read {client: [name]}, and the ``tests`` of `_TESTS`, one name a line."""
    scored = {test: [ListedImage(name) for name in read_names(folder / _TESTS[test])] for test in tests}
    return read_clients([folder / _TRAIN]), scored


def _names_there(folder: Path) -> tuple[Clients, Clients]:
    """Read train.json and those tests that there are: a data set may be without unseen domains."""
    strange = {path.name for path in folder.glob("test*.txt")} - set(_TESTS.values())
    if strange:
        raise UserError(
            f"--lists {folder} holds {min(strange)}; expected what is scored in {' and '.join(_TESTS.values())}, so "
            "rename it."
        )
    return _names(folder, [test for test, file in _TESTS.items() if (folder / file).is_file()])


def _published(folder: Path) -> tuple[Clients, Clients]:
    need_folder(folder, "--lists", "expected the folder that holds the lists.")
    for part in ("train", "test"):
        need_folder(
            folder / part,
            "--lists",
            f"expected in {folder} the published train/*.json and test/*.json, or the reduced form's {_TRAIN}, "
            f"{' and '.join(_TESTS.values())}.",
        )
    tests = read_clients([folder / "test"])
    unknown = next((user for user in tests if user not in _TEST_USERS), None)
    if unknown is not None:
        raise UserError(
            f"The lists in {folder / 'test'} hold the user {unknown!r}; expected {', '.join(_TEST_USERS)}."
        )
    named = {_TEST_USERS[user]: samples for user, samples in tests.items()}
    return read_clients([folder / "train"]), {test: named[test] for test in _TESTS if test in named}


def is_unseen(domain: str, scenario: str) -> bool:
    """Return whether a domain TOWN_WEATHER_CAR is kept from the clients in a scenario of `UNSEEN`."""
    parts = domain.split("_")
    if len(parts) != 3 or not all(parts):
        raise UserError(
            f"The domain {domain!r} is not named TOWN_WEATHER_CAR, such as T01_CN_A; restore the folder's name."
        )
    position, value = UNSEEN[scenario]
    return parts[position] == value


def hold_out(domains: _Domains, seed: int) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
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


def uniform(train: _Domains, seed: int) -> _Drawn:
    """Deal every domain out, one image a client: all clients see as many domains as they have images.

    There are as many clients as domains; with domains of one size each holds that many images, of
    that many domains where there are enough.
    """
    clients = [f"client_{i + 1}" for i in range(len(train))]
    rng = numpy_generator(seed, "idda", "uniform")
    names = list(train)
    dealt: _Drawn = {client: [] for client in clients}
    turn = 0
    for d in rng.permutation(len(names)):
        images = train[names[d]]
        for i in rng.permutation(len(images)):
            dealt[clients[turn % len(clients)]].append(images[i])
            turn += 1
    return {client: sorted(images) for client, images in dealt.items() if images}


def class_imbalance(
    train: _Domains,
    scenario: str,
    seed: int,
    characteristic: Callable[[list[str]], npt.NDArray[np.int64]],
) -> _Drawn:
    """Give every client images of few classes from three to five domains (all, where there are fewer).

    Domains are grouped at random by about four. The images of a group are ordered by the class that stands out in
    them (``characteristic``: int [N] of N images). They are cut into as many clients as the group has domains.
    """
    rng = numpy_generator(seed, "idda", "class-imbalance")
    names = [list(train)[i] for i in rng.permutation(len(train))]
    every = [image for name in names for image in train[name]]
    standing_out = dict(zip(every, characteristic(every).tolist(), strict=True))
    clients: _Drawn = {}
    groups = max(1, round(len(names) / _DOMAINS_PER_CLIENT))
    for group in np.array_split(np.arange(len(names)), groups):
        images = [image for g in group for image in train[names[g]]]
        images = [images[i] for i in rng.permutation(len(images))]
        images.sort(key=standing_out.__getitem__)
        for part in np.array_split(np.arange(len(images)), len(group)):
            clients[f"client_{scenario}_{len(clients) + 1}"] = sorted(images[i] for i in part)
    return clients


def drawn(
    root: Path, scenario: str, distribution: str, seed: int, table: ClassTable
) -> tuple[Clients, Clients]:
    """Draw clients, and what is scored, from the folders of domains below ``root``.

    Raises `UserError` for a domain without images' folder or with another name, and where no client is left.
    """
    domains: dict[str, list[str]] = {}
    for folder in sorted(root.iterdir()):
        if (folder / "RGB").is_dir():
            domains[folder.name] = [p.relative_to(root).as_posix() for p in images_below(folder / "RGB")]
        elif _DOMAIN.fullmatch(folder.name):
            raise UserError(f"The domain {folder} has no folder RGB; complete it or take it away.")
    if not any(domains.values()):
        return {}, {}
    seen = {domain: images for domain, images in domains.items() if not is_unseen(domain, scenario)}
    unseen = [image for domain, images in domains.items() if domain not in seen for image in images]
    if not seen:
        raise UserError(
            f"All domains of {root} are unseen in scenario {scenario!r}; choose another --scenario."
        )
    train, test = hold_out(seen, seed)
    clients = train
    if distribution == "uniform":
        clients = uniform(train, seed)
    elif distribution == "class-imbalance":
        clients = class_imbalance(train, scenario, seed, lambda images: _standing_out(root, images, table))

    def samples(images: Sequence[str]) -> list[ListedImage]:
        return [in_domain(ListedImage(image)) for image in images]

    tests = {SAME: samples([i for images in test.values() for i in images]), DIFFERENT: samples(unseen)}
    return {client: samples(images) for client, images in clients.items()}, tests


def _standing_out(root: Path, images: list[str], table: ClassTable) -> npt.NDArray[np.int64]:
    """Return the class that stands out in each image, int64 [N], from its label map."""
    need_files(root, [Entry(image, label_of(image)) for image in images], "train")

    def count(image: str) -> npt.NDArray[np.int64]:
        label = read_label(root / label_of(image), table)
        return np.bincount(label.ravel(), minlength=256)[: table.num_classes].astype(np.int64)

    with ThreadPoolExecutor(4) as pool:
        return characteristic_class(np.stack(list(pool.map(count, images))))
