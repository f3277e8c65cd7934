"""Lists of IDDA: which image goes to which client, in the reduced form and in the folders of domains."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from common.errors import UserError
from partitions.leaf import Clients, ListedImage, read_clients, read_names
from partitions.sources.base import DIFFERENT, SAME, need_folder

_TRAIN = "train.json"
_TEST_USERS = {"test_user_same_domain": SAME, "test_user_diff_domain": DIFFERENT}
_TESTS = {SAME: "test_same_dom.txt", DIFFERENT: "test_diff_dom.txt"}


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


def in_domains(samples: list[ListedImage]) -> list[ListedImage]:
    """Place samples in the folders of domains; add domains, and label maps where a list names none."""
    images = [_image_of(sample.x) for sample in samples]
    return [ListedImage(x, s.y or label_of(x), domain_of(x)) for x, s in zip(images, samples, strict=True)]


def is_reduced(root: Path, other_lists: bool) -> bool:
    """Return whether ``root`` holds the reduced form; lists alone may lie above folders of domains too."""
    return (root / _TRAIN).is_file() and ((root / "images").is_dir() or not other_lists)


def reduced(root: Path) -> tuple[Clients, Clients]:
    """Return clients and what is scored of the reduced form, whose lists stand in its root."""
    if not (root / "images").is_dir():
        raise UserError(
            f"{root} holds {_TRAIN} but no folder images; complete the reduced form, or give --lists {root} if the "
            "pictures lie in folders of domains."
        )

    def placed(clients: Clients) -> Clients:
        return {
            client: [ListedImage(f"images/{s.x}.jpg", f"labels/{s.x}.png", domain_of(s.x)) for s in samples]
            for client, samples in clients.items()
        }

    train, tests = _names(root, _TESTS)
    return placed(train), placed(tests)


def listed(folder: Path) -> tuple[Clients, Clients]:
    """Return clients and what is scored of the folders of domains, by lists of names or the published ones.

    Raises `UserError` where ``folder`` holds neither, or lists of another kind.
    """
    train, tests = _names_there(folder) if (folder / _TRAIN).is_file() else _published(folder)

    def placed(clients: Clients) -> Clients:
        return {client: in_domains(samples) for client, samples in clients.items()}

    return placed(train), placed(tests)


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
