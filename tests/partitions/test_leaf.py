"""Are client lists of other systems read as they were meant, refused where they disagree, and written back?"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.manifest import read_partition, read_shard
from common.errors import UserError
from partitions.__main__ import partitions_main as main
from partitions.leaf import Clients, ListedImage, flat_json, leaf_json, read_clients, write_clients
from tests.support.replicas import put_label, put_picture


def _leaf(users: dict[str, dict[str, list[str]]], counts: Any = None) -> dict[str, Any]:
    stated = [len(content["x"]) for content in users.values()] if counts is None else counts
    return {"users": [*users], "num_samples": stated, "user_data": users}


def _write(path: Path, data: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


TWO = {"a": {"x": ["1.jpg", "2.jpg"], "y": ["1.png", "2.png"]}, "b": {"x": ["3.jpg"]}}


def test_images_labels_and_clients_without_labels(tmp_path: Path) -> None:
    found = read_clients([_write(tmp_path / "l.json", _leaf(TWO))])
    assert found == {
        "a": [ListedImage("1.jpg", "1.png"), ListedImage("2.jpg", "2.png")],
        "b": [ListedImage("3.jpg")],
    }


def test_files_of_a_folder_are_merged_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        _write(tmp_path / f"all_data_{number}.json", _leaf({f"c{number}": {"x": [f"{number}.jpg"]}}))
    assert list(read_clients([tmp_path])) == ["c1", "c2", "c10"]


@pytest.mark.parametrize("counts", [[2, 1], [1, 2], 3])
def test_counts_may_be_a_total_or_in_another_order_as_published_lists_have_them(
    tmp_path: Path, counts: Any
) -> None:
    assert len(read_clients([_write(tmp_path / "l.json", _leaf(TWO, counts))])) == 2


@pytest.mark.parametrize("counts", [[2, 2], [3], 4, [2, 1, 0], []])
def test_counts_that_disagree_are_refused(tmp_path: Path, counts: Any) -> None:
    with pytest.raises(UserError, match=r"states num_samples of .* but lists 3 images"):
        read_clients([_write(tmp_path / "l.json", _leaf(TWO, counts))])


@pytest.mark.parametrize(
    ("counts", "shown"),
    [
        ("1", "num_samples' is '1'"),
        (True, "num_samples' is True"),
        ([True], r"num_samples\.0' is True"),
        (1.0, "num_samples' is 1.0"),
        ([None], r"num_samples\.0' is None"),
        ([[1]], r"num_samples\.0' is \[1\]"),
        ({"a": 1}, r"num_samples' is \{'a': 1\}"),
    ],
)
def test_counts_that_are_no_whole_numbers_are_refused(tmp_path: Path, counts: Any, shown: str) -> None:
    with pytest.raises(UserError, match=f"{shown}: .*(integer|list).*correct the list"):
        read_clients([_write(tmp_path / "l.json", _leaf({"a": {"x": ["1.jpg"]}}, counts))])


def test_users_may_be_whole_numbers_as_their_keys_cannot(tmp_path: Path) -> None:
    data = {"users": [2, "x", 1], "user_data": {name: {"x": [f"{name}.jpg"]} for name in ("1", "2", "x")}}
    found = read_clients([_write(tmp_path / "l.json", data)])
    assert found == {name: [ListedImage(f"{name}.jpg")] for name in ("2", "x", "1")}
    assert list(found) == ["2", "x", "1"]


def test_lists_nested_without_end(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"l\.json cannot be read as JSON \(maximum recursion depth"):
        read_clients([_write(tmp_path / "l.json", '{"a": ' * 100_000)])


@pytest.mark.parametrize("city", ["Rome", ["Rome", "Rome"]])
def test_a_city_is_the_domain(tmp_path: Path, city: str | list[str]) -> None:
    content: dict[str, Any] = {"t": {"x": ["1.png", "2.png"], "city": city}}
    found = read_clients([_write(tmp_path / "l.json", _leaf(content))])
    assert [sample.domain for sample in found["t"]] == ["Rome", "Rome"]


def test_flat_and_text_lists(tmp_path: Path) -> None:
    flat = _write(tmp_path / "train.json", {"u1": ["a", "b"], "u2": ["c"]})
    text = _write(tmp_path / "test.txt", "d\n\n  e \n")
    assert flat_json(read_clients([flat, text])) == {"u1": ["a", "b"], "u2": ["c"], "test": ["d", "e"]}


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ("{", "cannot be read as JSON"),
        ('{"a": ["x"], "a": ["y"]}', "the key 'a' stands in one object twice"),
        (
            '{"users": ["a"], "user_data": {"a": {"x": ["1"]}, "a": {"x": ["2"]}}}',
            "the key 'a' stands in one object twice",
        ),
        ("[]", "holds no clients"),
        ({}, "holds no clients"),
        ({"a": "b"}, "'a' is 'b': .*list"),
        ({"a": []}, r"'a' is \[\]: .*at least 1"),
        ({"a": ["x", "x"]}, "give the image 'x' to a and to a"),
        ({"a": ["x"], "b": ["x"]}, "give the image 'x' to a and to b"),
        ({"users": ["a"], "user_data": []}, r"'user_data' is \[\]: .*expected LEAF JSON"),
        (
            {"users": ["a"], "user_data": {"b": {"x": ["1"]}}},
            "counts 1 in 'users' and 1 in 'user_data', of them the client 'a' 1 and 0 times",
        ),
        (
            {"users": [], "user_data": {"b": {"x": ["1"]}}},
            "counts 0 in 'users' and 1 .* client 'b' 0 and 1 times",
        ),
        (
            {"users": ["b", "b"], "user_data": {"b": {"x": ["1"]}}},
            "counts 2 in 'users' and 1 .* client 'b' 2 and 1",
        ),
        (
            {"users": [1, "1"], "user_data": {"1": {"x": ["1"]}}},
            "counts 2 in 'users' and 1 .* client '1' 2 and 1",
        ),
        (
            {"users": [1], "user_data": {"01": {"x": ["1"]}}},
            "counts 1 in 'users' and 1 .* client '1' 1 and 0",
        ),
        (
            {"users": [{"id": 1}], "user_data": {"1": {"x": ["1"]}}},
            r"'users\.0' is \{'id': 1\}: .*string",
        ),
        ({"users": [["a"]], "user_data": {"a": {"x": ["1"]}}}, r"'users\.0' is \['a'\]: .*string"),
        ({"users": [True], "user_data": {"True": {"x": ["1"]}}}, r"'users\.0' is True: .*string"),
        ({"users": ["1", None], "user_data": {"1": {"x": ["1"]}}}, r"'users\.1' is None: .*string"),
        ({"users": [1.0], "user_data": {"1.0": {"x": ["1"]}}}, r"'users\.0' is 1.0: .*string"),
        (_leaf({"a": {"x": ["1", "2"], "y": ["1"]}}), "2 images in 'x' but 1 entries in 'y'"),
        ({"users": ["a"], "user_data": {"a": {"y": ["1"]}}}, r"'user_data\.a\.x' is missing"),
    ],
)
def test_broken_lists(tmp_path: Path, data: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        read_clients([_write(tmp_path / "l.json", data)])


def test_lists_that_are_not_there_or_say_a_client_twice(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone.json cannot be read"):
        read_clients([tmp_path / "gone.json"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds no \.json"):
        read_clients([tmp_path / "empty"])
    for name, image in (("1", "x"), ("2", "y")):
        _write(tmp_path / "d" / f"{name}.json", {"a": [image]})
    with pytest.raises(UserError, match=r"2.json holds the client 'a', which an earlier file holds too"):
        read_clients([tmp_path / "d"])


_NAMES = st.text(alphabet="abc/_.", min_size=1, max_size=8)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(_NAMES, _NAMES), min_size=1, max_size=12, unique_by=lambda pair: pair[0]),
    st.booleans(),
)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]], labels: bool
) -> None:
    path = tmp_path_factory.mktemp("round") / "l.json"
    clients: Clients = {}
    for i, (x, y) in enumerate(pairs):
        clients.setdefault(f"c{i % 3}", []).append(ListedImage(x, y if labels else None))
    write_clients(path, clients, "leaf")
    assert read_clients([path]) == clients
    assert leaf_json(clients)["num_samples"] == [len(samples) for samples in clients.values()]
    write_clients(path, clients, "flat")
    assert flat_json(read_clients([path])) == flat_json(clients)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four labelled pictures."""
    for name in "1234":
        put_picture(tmp_path / f"data/pics/{name}.jpg")
        put_label(tmp_path / f"data/maps/{name}.png", [0, 1])
    return tmp_path / "data"


def _fails(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_lists_become_sites_and_sites_become_the_same_lists(root: Path, tmp_path: Path) -> None:
    users = {
        "north": {"x": ["pics/3.jpg", "pics/1.jpg"], "y": ["maps/3.png", "maps/1.png"]},
        "south": {"x": ["pics/2.jpg"], "y": ["maps/2.png"]},
    }
    lists = _write(tmp_path / "train.json", _leaf(users))
    test = _write(tmp_path / "test.json", _leaf({"anyone": {"x": ["pics/4.jpg"], "y": ["maps/4.png"]}}))
    out = tmp_path / "o"
    words = ["leaf", "--root", root, "--lists", lists, "--test", f"far={test}", "--classes", "crackforest"]
    assert main([*map(str, words), "--out", str(out)]) == 0
    partition = read_partition(out)
    assert partition.rule == "lists" and partition.sites == {"site-0": 2, "site-1": 1}
    assert partition.settings["clients"] == {"site-0": "north", "site-1": "south"}
    assert partition.evaluation == {"train_eval": 3, "far": 1}
    assert partition.histogram == {"site-0": [128, 128], "site-1": [64, 64]}
    assert (out / "split.png").is_file()
    assert main(["export", "--shards", str(out), "--out", str(tmp_path / "back.json")]) == 0
    assert json.loads((tmp_path / "back.json").read_text()) == json.loads(lists.read_text())


def test_flat_lists_are_placed_by_patterns(root: Path, tmp_path: Path) -> None:
    lists = _write(tmp_path / "train.json", {"u": ["1", "2"], "v": ["3"]})
    test = _write(tmp_path / "far.txt", "4\n")
    words = ["leaf", "--root", root, "--lists", lists, "--test", test, "--classes", "crackforest"]
    patterns = ["--image-path", "pics/{id}.jpg", "--label-path", "maps/{id}.png"]
    assert main([*map(str, words), *patterns, "--out", str(tmp_path / "o")]) == 0
    entries = read_shard(tmp_path / "o/site-0.jsonl").entries
    assert [(e.image, e.label) for e in entries] == [
        ("pics/1.jpg", "maps/1.png"),
        ("pics/2.jpg", "maps/2.png"),
    ]
    assert read_partition(tmp_path / "o").evaluation == {"train_eval": 3, "far": 1}


def test_clients_without_labels_need_no_class_table(root: Path, tmp_path: Path) -> None:
    lists = _write(tmp_path / "train.json", _leaf({"u": {"x": ["pics/1.jpg"]}}))
    assert main(["leaf", "--root", str(root), "--lists", str(lists), "--out", str(tmp_path / "o")]) == 0
    assert read_partition(tmp_path / "o").evaluation == {}


@pytest.mark.parametrize(
    ("data", "words", "sentence"),
    [
        ({"u": ["gone"]}, [], "gone of split 'train' is missing"),
        ({"u": ["../x.jpg"]}, [], "name '../x.jpg', which leaves --root"),
        (
            {"u": ["1"]},
            ["--image-path", "pics/x.jpg"],
            r"--image-path is 'pics/x.jpg'; expected a path .*\{id\}",
        ),
        (_leaf({"u": {"x": ["pics/1.jpg"], "y": ["maps/1.png"]}}), [], "but --classes is not given"),
        ({"u": ["pics/1.jpg"]}, ["--test", "site-0=LISTS"], "--test names the manifest 'site-0'"),
        (
            {"u": ["pics/1.jpg"]},
            ["--test", "train_eval=FAR"],
            "the manifest 'train_eval', which holds the images that sites train on; give another name",
        ),
        (
            {"u": ["pics/1.jpg"]},
            ["--test", "a=FAR", "a=LISTS"],
            "the manifest 'a', which an earlier list of --test makes already; give another name, as NAME=.*train.json",
        ),
        ({"users": [{"id": 1}], "user_data": {"1": {"x": ["1"]}}}, [], r"'users\.0' is \{'id': 1\}"),
        ("[" * 100_000, [], "train.json cannot be read as JSON .maximum recursion"),
        ({"u": ["pics/1.jpg"]}, ["--test", "far=LISTS"], "train on 'pics/1.jpg' and score it in far"),
    ],
)
def test_lists_that_do_not_fit_the_files(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], data: Any, words: list[str], sentence: str
) -> None:
    lists = _write(tmp_path / "train.json", data)
    far = _write(tmp_path / "far.txt", "pics/4.jpg\n")
    more = [word.replace("LISTS", str(lists)).replace("FAR", str(far)) for word in words]
    message = _fails(capsys, "leaf", "--root", root, "--lists", lists, "--out", tmp_path / "o", *more)
    assert re.search(sentence, message) and not (tmp_path / "o").exists()
    assert message.startswith("error: ") and message.count("\n") == 1


@pytest.mark.parametrize("name", ["source", "target"])
def test_lists_that_take_the_names_of_roles(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    users = {n: {"x": [f"pics/{n}.jpg"], "y": [f"maps/{n}.png"], "city": [n]} for n in "12"}
    lists = _write(tmp_path / "train.json", _leaf(users))
    far = _write(tmp_path / "far.json", _leaf({"f": {"x": ["pics/4.jpg"], "y": ["maps/4.png"]}}))
    words = ["leaf", "--root", root, "--lists", lists, "--classes", "crackforest", "--sites-of", 1]
    words += ["--source", 2, "--test"]
    message = _fails(capsys, *words, f"{name}={far}", "--out", tmp_path / "o")
    assert f"--test names the manifest {name!r}, which --source and --score keep" in message
    assert main([*map(str, words), f"far={far}", "--out", str(tmp_path / "o")]) == 0
    assert read_partition(tmp_path / "o").evaluation == {"source": 1, "train_eval": 1, "far": 1}


def test_a_list_of_ones_own_called_ts1_keeps_what_has_no_domain(root: Path, tmp_path: Path) -> None:
    users = {n: {"x": [f"pics/{n}.jpg"], "y": [f"maps/{n}.png"], "city": [n]} for n in "12"}
    lists = _write(tmp_path / "train.json", _leaf(users))
    scored = _write(tmp_path / "scored.json", _leaf({"f": {"x": ["pics/4.jpg"], "y": ["maps/4.png"]}}))
    words = ["leaf", "--root", root, "--lists", lists, "--classes", "crackforest", "--sites-of", 1]
    words += ["--source", 2, "--test", f"ts1={scored}", "--out", tmp_path / "o"]
    assert main([*map(str, words)]) == 0
    assert read_partition(tmp_path / "o").evaluation["ts1"] == 1


def test_the_source_of_an_adaptation_is_not_scored(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    users = {n: {"x": [f"pics/{n}.jpg"], "y": [f"maps/{n}.png"], "city": [n]} for n in "12"}
    lists = _write(tmp_path / "train.json", _leaf(users))
    scored = _write(tmp_path / "scored.json", _leaf({"f": {"x": ["pics/2.jpg"], "y": ["maps/2.png"]}}))
    words = ["leaf", "--root", root, "--lists", lists, "--classes", "crackforest", "--sites-of", 1]
    message = _fails(capsys, *words, "--source", 2, "--test", f"far={scored}", "--out", tmp_path / "o")
    assert "train on 'pics/2.jpg' and score it in far; an image has one role" in message


def test_other_data_sets_have_no_lists(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = _fails(capsys, "folder", "--root", root, "--by", "lists", "--out", tmp_path / "o")
    assert "--by lists needs lists of clients, which folder does not have" in message


def test_exports_that_cannot_be(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("one", "two"):
        put_picture(tmp_path / f"same/{folder}/1.jpg")
    assert main(["folder", "--root", str(tmp_path / "same"), "--out", str(tmp_path / "o")]) == 0
    words = ["export", "--shards", tmp_path / "o", "--out", tmp_path / "l.json"]
    assert "have the same name without folder and ending; use --format leaf" in _fails(
        capsys, *words, "--format", "flat"
    )
    assert "ts1.jsonl does not exist" in _fails(capsys, *words, "--manifest", "ts1")
    (tmp_path / "l.json").touch()
    assert "exists already; give a new file" in _fails(capsys, *words)
    assert "does not exist; make it with" in _fails(
        capsys, "export", "--shards", root / "x", "--out", tmp_path / "y"
    )


def test_views_have_no_name_in_a_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put_picture(tmp_path / "a.png")
    _write(tmp_path / "site-0.jsonl", '{"image": "a.png", "view": "center"}\n')
    message = _fails(capsys, "export", "--shards", tmp_path, "--out", tmp_path / "l.json")
    assert "holds crops of images" in message
