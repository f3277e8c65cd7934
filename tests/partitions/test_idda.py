"""Is IDDA read in both its forms, drawn and listed? Proven on tiny replicas."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from common.data.classes import load_table
from common.data.manifest import read_partition, read_shard, read_sites
from partitions.__main__ import partitions_main as main
from partitions.sources import idda_clients
from tests.support.replicas import put_label, put_picture

DOMAINS = ("T01_CN_A", "T01_HRN_B", "T02_CS_B", "T07_CN_A")
IMAGES = 5


def _put(root: Path, domain: str, number: int) -> None:
    name = f"{number}_{domain}"
    put_picture(root / f"{domain}/RGB/{name}.jpg")
    put_label(root / f"{domain}/Semantic/{name}.png", [7, 6, 10, 0, 22 + number % 2])


@pytest.fixture
def domains(tmp_path: Path) -> Path:
    """Four domains of five images; raw ids road, road line, vehicle, unlabelled, ground or static."""
    root = tmp_path / "IDDAsmall"
    for domain in DOMAINS:
        for number in range(IMAGES):
            _put(root, domain, number)
    return tmp_path


def _run(root: Path, out: Path, *words: str) -> None:
    assert main(["idda", "--root", str(root), "--out", str(out), *words]) == 0


def _images(folder: Path, name: str) -> set[str]:
    return {entry.image for entry in read_shard(folder / f"{name}.jsonl").entries}


@pytest.mark.parametrize(
    ("scenario", "seen"),
    [
        ("country", ["T01_CN_A", "T01_HRN_B", "T02_CS_B"]),
        ("rainy", ["T01_CN_A", "T02_CS_B", "T07_CN_A"]),
        ("bus", ["T01_CN_A", "T07_CN_A"]),
    ],
)
def test_a_client_is_a_domain(domains: Path, tmp_path: Path, scenario: str, seen: list[str]) -> None:
    out = tmp_path / "o"
    _run(domains, out, "--scenario", scenario)
    partition = read_partition(out)
    assert list(partition.settings["clients"].values()) == seen
    assert list(partition.sites.values()) == [4] * len(seen) and partition.rule == "lists"
    unseen = IMAGES * (len(DOMAINS) - len(seen))
    assert partition.evaluation == {"train_eval": 4 * len(seen), "ts1": len(seen), "ts2": unseen}
    assert partition.classes == load_table("idda-16") and partition.histogram is not None
    road, vehicle = partition.histogram["site-0"][0], partition.histogram["site-0"][13]
    assert road > vehicle > 0, "road lines are road"
    assert not any(domain in path for path in _images(out, "ts2") for domain in seen)
    assert (out / "split.png").is_file()


def test_every_image_has_one_role(domains: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    _run(domains, out)
    trained = set().union(*(_images(out, shard.name) for shard in read_sites(out)))
    same, different = _images(out, "ts1"), _images(out, "ts2")
    assert trained == _images(out, "train_eval")
    assert len(trained | same | different) == len(trained) + len(same) + len(different) == 20
    assert all(entry.domain in entry.image for entry in read_shard(out / "ts1.jsonl").entries if entry.domain)
    owner = {entry.image: shard.name for shard in read_sites(out) for entry in shard.entries}
    assert all(entry.site == owner[entry.image] for entry in read_shard(out / "train_eval.jsonl").entries)
    assert "site" not in (out / "ts1.jsonl").read_text() + (out / "site-0.jsonl").read_text()


def test_uniform_mixes_domains_and_the_seed_decides(domains: Path, tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        _run(domains, tmp_path / name, "--distribution", "uniform", "--seed", seed)
    partition = read_partition(tmp_path / "a")
    assert list(partition.settings["clients"].values()) == ["client_1", "client_2", "client_3"]
    assert all(len(found) == 3 for found in partition.domains.values())
    assert _images(tmp_path / "a", "site-0") == _images(tmp_path / "b", "site-0")
    assert _images(tmp_path / "a", "site-0") != _images(tmp_path / "c", "site-0")


def test_class_imbalance_reads_labels(domains: Path, tmp_path: Path) -> None:
    for domain in DOMAINS[:3]:
        for number in range(IMAGES):
            put_label(
                domains / f"IDDAsmall/{domain}/Semantic/{number}_{domain}.png", [7 if number < 3 else 10]
            )
    _run(domains, tmp_path / "o", "--distribution", "class-imbalance")
    partition = read_partition(tmp_path / "o")
    assert next(iter(partition.settings["clients"].values())) == "client_country_1"
    assert partition.histogram is not None
    seen = [sum(1 for pixels in counts if pixels) for counts in partition.histogram.values()]
    assert sorted(seen)[:2] == [1, 1], "two of three clients see one class only"


def test_quick_opens_no_label(domains: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (domains / "IDDAsmall").rglob("Semantic/*.png"):
        path.write_bytes(b"no picture")
    for distribution in ("heterogeneous", "uniform"):
        _run(domains, tmp_path / distribution, "--quick", "--distribution", distribution)
        assert read_partition(tmp_path / distribution).histogram is None
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        _run(domains, tmp_path / "o", "--quick", "--distribution", "class-imbalance")
    message = capsys.readouterr().err
    assert stop.value.code == 2 and not (tmp_path / "o").exists()
    assert "--distribution class-imbalance divides by the classes in the label maps" in message
    assert "leave --quick out, or choose heterogeneous or uniform" in message


def test_23_classes(domains: Path, tmp_path: Path) -> None:
    _run(domains, tmp_path / "o", "--classes", "idda-23")
    histogram = read_partition(tmp_path / "o").histogram
    assert histogram is not None and histogram["site-0"][6] > 0 and histogram["site-0"][5] > 0


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Lists of two clients and both test users for `domains`, as LEAF JSON in two folders."""

    def path(domain: str, number: int) -> str:
        return f"{domain}/RGB/{number}_{domain}.jpg"

    def leaf(users: dict[str, list[str]]) -> str:
        labels = {
            u: [x.replace("RGB", "Semantic").replace("jpg", "png") for x in xs] for u, xs in users.items()
        }
        data = {user: {"x": xs, "y": labels[user]} for user, xs in users.items()}
        return json.dumps({"users": [*users], "num_samples": [*map(len, users.values())], "user_data": data})

    lists = tmp_path / "lists"
    for part, users in {
        "train": {"client_1": [path("T01_CN_A", 0), path("T02_CS_B", 1)], "client_2": [path("T02_CS_B", 2)]},
        "test": {
            "test_user_diff_domain": [path("T07_CN_A", i) for i in range(5)],
            "test_user_same_domain": [path("T01_CN_A", 3)],
        },
    }.items():
        (lists / part).mkdir(parents=True)
        (lists / part / "all.json").write_text(leaf(users))
    return lists


def test_published_lists_are_followed_and_alone_are_recorded(
    domains: Path, published: Path, tmp_path: Path
) -> None:
    _run(domains, tmp_path / "o", "--lists", str(published))
    partition = read_partition(tmp_path / "o")
    assert {key: partition.settings.get(key) for key in ("form", "lists", "scenario", "distribution")} == {
        "form": "domains",
        "lists": str(published),
        "scenario": None,
        "distribution": None,
    }
    assert partition.settings["clients"] == {"site-0": "client_1", "site-1": "client_2"}
    assert partition.evaluation == {"train_eval": 3, "ts1": 1, "ts2": 5}
    assert partition.domains["site-0"] == {"T01_CN_A": 1, "T02_CS_B": 1}


def test_what_is_drawn_is_recorded(domains: Path, tmp_path: Path) -> None:
    _run(domains, tmp_path / "o", "--scenario", "bus", "--distribution", "uniform")
    settings = read_partition(tmp_path / "o").settings
    assert (settings["scenario"], settings["distribution"]) == ("bus", "uniform") and "lists" not in settings


@pytest.mark.parametrize("words", [["--scenario", "country"], ["--distribution", "uniform"]])
def test_lists_leave_nothing_to_draw(
    domains: Path, published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        _run(domains, tmp_path / "o", "--lists", str(published), *words)
    message = capsys.readouterr().err
    assert stop.value.code == 2 and not (tmp_path / "o").exists()
    assert f"{words[0]} is given but --lists {published} says which image goes where" in message
    assert f"leave {words[0]} out, or leave --lists out" in message


def _export(shards: Path, lists: Path, tests: bool = True) -> Path:
    """Write the lists of a split as the reduced form has them, names alone."""
    words = [(["--format", "flat"], "train.json")]
    if tests:
        words.append((["--format", "text", "--manifest", "ts1"], "test_same_dom.txt"))
        words.append((["--format", "text", "--manifest", "ts2"], "test_diff_dom.txt"))
    for options, file in words:
        assert main(["export", "--shards", str(shards), *options, "--out", str(lists / file)]) == 0
    return lists


@pytest.mark.parametrize("distribution", idda_clients.DISTRIBUTIONS)
def test_names_alone_bring_a_split_of_domains_back(domains: Path, tmp_path: Path, distribution: str) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    _run(domains, one, "--scenario", "rainy", "--distribution", distribution, "--seed", "3")
    lists = _export(one, tmp_path / "lists")
    assert "RGB" not in (lists / "train.json").read_text() + (lists / "test_same_dom.txt").read_text()
    _run(domains, two, "--lists", str(lists))
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    for path in one.glob("*.jsonl"):
        assert (two / path.name).read_bytes() == path.read_bytes()
    before, after = read_partition(one), read_partition(two)
    assert after.histogram == before.histogram and after.sites == before.sites
    assert after.settings["clients"] == before.settings["clients"] and "scenario" not in after.settings


def test_names_of_clients_alone_bring_the_sites_back(domains: Path, tmp_path: Path) -> None:
    _run(domains, tmp_path / "one")
    _run(
        domains, tmp_path / "two", "--lists", str(_export(tmp_path / "one", tmp_path / "lists", tests=False))
    )
    assert read_partition(tmp_path / "two").evaluation == {"train_eval": 12}
    assert (tmp_path / "two/site-1.jsonl").read_bytes() == (tmp_path / "one/site-1.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("file", "text", "sentence"),
    [
        ("train.json", '{"u": ["12"]}', "The lists name '12'; expected NUMBER_TOWN_WEATHER_CAR"),
        (
            "train.json",
            '{"u": ["99_T01_CN_A"]}',
            r"T01_CN_A/RGB/99_T01_CN_A\.jpg of split 'train' is missing",
        ),
        ("train.json", '{"u": ["1_../../.."]}', "The lists name .*, which leaves --root"),
        ("test_same_dom.txt", "0_T01_CN_A\n", "train on 'T01_CN_A/RGB/0_T01_CN_A.jpg' and score it in ts1"),
        (
            "test_same_domain.txt",
            "1_T01_CN_A\n",
            "holds test_same_domain.txt; expected .* test_same_dom.txt and",
        ),
        ("test_diff_dom.txt", "\n", "test_diff_dom.txt names no image"),
        (
            "test_diff_dom.txt",
            "1_T01_CN_A\n",
            "score T01_CN_A/RGB/1_T01_CN_A.jpg in ts2, as of an unseen domain, but clients hold images of T01_CN_A",
        ),
    ],
)
def test_names_that_cannot_be(
    domains: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, text: str, sentence: str
) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/train.json").write_text('{"u": ["0_T01_CN_A"]}')
    (tmp_path / "lists" / file).write_text(text)
    with pytest.raises(SystemExit) as stop:
        _run(domains, tmp_path / "o", "--lists", str(tmp_path / "lists"))
    message = capsys.readouterr().err
    assert stop.value.code == 2 and message.count("\n") == 1 and re.search(sentence, message)


def test_an_image_is_of_a_known_domain_or_of_an_unseen_one(
    domains: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/train.json").write_text('{"u": ["0_T01_CN_A"]}')
    for name in ("same", "diff"):
        (tmp_path / f"lists/test_{name}_dom.txt").write_text("0_T01_CN_B\n")
    with pytest.raises(SystemExit):
        _run(domains, tmp_path / "o", "--lists", str(tmp_path / "lists"))
    assert "score T01_CN_B/RGB/0_T01_CN_B.jpg in ts1 and in ts2" in capsys.readouterr().err


def test_known_domains_of_an_adaptation_are_those_of_its_sites(domains: Path, tmp_path: Path) -> None:
    known = sorted({str(e.domain) for e in read_shard(_split_of(domains, tmp_path) / "ts1.jsonl").entries})
    assert len(known) > 2
    _run(domains, tmp_path / "o", "--sites-of", known[0], "--source", known[1])
    assert {entry.domain for entry in read_shard(tmp_path / "o/ts1.jsonl").entries} == {known[0]}


def _split_of(domains: Path, folder: Path) -> Path:
    _run(domains, folder / "whole")
    return folder / "whole"


def test_folders_without_lists(domains: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, sentence in (
        ("gone", "gone is no folder; expected the folder that holds the lists"),
        ("empty", "expected in .*empty the published train.* or the reduced form's train.json, test_same"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(SystemExit):
            _run(domains, tmp_path / "o", "--lists", str(tmp_path / folder))
        assert re.search(sentence, capsys.readouterr().err)


@pytest.fixture
def reduced(tmp_path: Path) -> Path:
    """The course form: two clients of one domain and one of another, lists of names."""
    root = tmp_path / "reduced"
    clients = {"T01_CN_A_U1": [1, 2], "T01_CN_A_U2": [3, 4], "T02_CS_J_U1": [5, 6]}
    names = {client: [f"{n}_{client[:-3]}" for n in numbers] for client, numbers in clients.items()}
    tests = {"test_same_dom": ["7_T01_CN_A", "8_T02_CS_J"], "test_diff_dom": ["9_T03_HRN_A"]}
    for name in [n for listed in (*names.values(), *tests.values()) for n in listed]:
        put_picture(root / f"images/{name}.jpg")
        put_label(root / f"labels/{name}.png", [7, 20])
    (root / "train.json").write_text(json.dumps(names))
    for file, listed in tests.items():
        (root / f"{file}.txt").write_text("\n".join(listed) + "\n")
    return root


def test_the_reduced_form(reduced: Path, tmp_path: Path) -> None:
    _run(reduced, tmp_path / "o", "--no-labels")
    partition = read_partition(tmp_path / "o")
    assert list(partition.settings["clients"].values()) == ["T01_CN_A_U1", "T01_CN_A_U2", "T02_CS_J_U1"]
    assert partition.domains == {
        "site-0": {"T01_CN_A": 2},
        "site-1": {"T01_CN_A": 2},
        "site-2": {"T02_CS_J": 2},
    }
    assert partition.evaluation == {"train_eval": 6, "ts1": 2, "ts2": 1}
    assert not read_shard(tmp_path / "o/site-0.jsonl").labelled
    assert all(read_shard(tmp_path / f"o/{name}.jsonl").labelled for name in ("train_eval", "ts1", "ts2"))
    assert _images(tmp_path / "o", "ts2") == {"images/9_T03_HRN_A.jpg"}


def test_the_reduced_form_goes_back_to_its_lists(reduced: Path, tmp_path: Path) -> None:
    _run(reduced, tmp_path / "o")
    for words, file in (
        (["--format", "flat"], "train.json"),
        (["--format", "text", "--manifest", "ts1"], "test_same_dom.txt"),
    ):
        target = tmp_path / file
        assert main(["export", "--shards", str(tmp_path / "o"), *words, "--out", str(target)]) == 0
        written, original = target.read_text(), (reduced / file).read_text()
        assert written == original if file.endswith("txt") else json.loads(written) == json.loads(original)


@pytest.fixture
def full(reduced: Path, tmp_path: Path) -> Path:
    """The folders of domains that the reduced form was taken from, with images that it leaves out."""
    root = tmp_path / "full"
    for image in (reduced / "images").iterdir():
        domain = image.stem.partition("_")[2]
        for kind, source in (("RGB", image), ("Semantic", reduced / f"labels/{image.stem}.png")):
            (root / domain / kind).mkdir(parents=True, exist_ok=True)
            shutil.copy(source, root / domain / kind)
    for domain in ("T01_CN_A", "T02_CS_J", "T03_HRN_A", "T07_CN_A"):
        _put(root, domain, 100)
    return root


def test_the_reduced_form_is_rebuilt_from_folders_of_domains(
    reduced: Path, full: Path, tmp_path: Path
) -> None:
    lists = tmp_path / "lists"
    lists.mkdir()
    for file in reduced.glob("*.*"):
        shutil.copy(file, lists)
    _run(reduced, tmp_path / "small")
    _run(full, tmp_path / "rebuilt", "--lists", str(lists))
    assert _export(tmp_path / "rebuilt", tmp_path / "back").is_dir()
    for name in ("site-0", "site-1", "site-2", "train_eval", "ts1", "ts2"):
        small, rebuilt = (read_shard(tmp_path / f / f"{name}.jsonl").entries for f in ("small", "rebuilt"))
        assert [(Path(e.image).name, e.domain, e.site) for e in small] == [
            (Path(e.image).name, e.domain, e.site) for e in rebuilt
        ]
        assert [e.label for e in rebuilt] == [
            f"{e.domain}/Semantic/{Path(e.image).stem}.png" for e in rebuilt
        ]
    before, after = read_partition(tmp_path / "small"), read_partition(tmp_path / "rebuilt")
    assert after.histogram == before.histogram and after.evaluation == before.evaluation
    assert after.settings["clients"] == before.settings["clients"]
    for file in reduced.glob("*.*"):
        written, original = (tmp_path / "back" / file.name).read_text(), file.read_text()
        assert written == original if file.suffix == ".txt" else json.loads(written) == json.loads(original)


def test_lists_may_lie_in_the_root_of_the_domains(
    reduced: Path, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in reduced.glob("*.*"):
        shutil.copy(file, full)
    with pytest.raises(SystemExit):
        _run(full, tmp_path / "o")
    message = capsys.readouterr().err
    assert (
        f"holds train.json but no folder images; complete the reduced form, or give --lists {full}" in message
    )
    _run(full, tmp_path / "o", "--lists", str(full))
    assert read_partition(tmp_path / "o").evaluation == {"train_eval": 6, "ts1": 2, "ts2": 1}


def test_the_reduced_form_by_domain(reduced: Path, tmp_path: Path) -> None:
    _run(reduced, tmp_path / "o", "--by", "domain")
    assert read_partition(tmp_path / "o").sites == {"site-0": 4, "site-1": 2}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--scenario", "bus"], "--scenario is given but .*train.json says which image goes where"),
        (["--lists", "x"], "--lists is given but"),
        (["--scenario", "snow"], "'snow' is not one of 'country'"),
    ],
)
def test_requests_that_cannot_be(
    reduced: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    with pytest.raises(SystemExit):
        _run(reduced, tmp_path / "o", *words)
    assert re.search(sentence, capsys.readouterr().err)


def test_lists_that_train_on_what_they_score(
    reduced: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (reduced / "test_same_dom.txt").write_text("1_T01_CN_A\n")
    with pytest.raises(SystemExit):
        _run(reduced, tmp_path / "o")
    assert "'images/1_T01_CN_A.jpg' and score it in ts1" in capsys.readouterr().err


def test_folders_that_are_no_idda(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit):
        _run(tmp_path / "empty", tmp_path / "o")
    assert "holds no images of split 'train' (expected: ROOT/DOMAIN/RGB" in capsys.readouterr().err
    _put(tmp_path / "odd", "town-1", 0)
    with pytest.raises(SystemExit):
        _run(tmp_path / "odd", tmp_path / "o")
    assert "'town-1' is not named TOWN_WEATHER_CAR" in capsys.readouterr().err
