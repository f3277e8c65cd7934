"""Does `python -m partitions` write a complete, right folder, or one sentence and nothing at all?"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data.check import check_shard
from common.data.manifest import read_manifest, read_partition, read_shard, read_sites
from partitions.__main__ import partitions_main as main

ROOT = Path(__file__).resolve().parents[2]


def _picture(path: Path, seed: int = 0, size: tuple[int, int] = (24, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def _label(path: Path, value: int = 0, size: tuple[int, int] = (24, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, value, dtype=np.uint8)).save(path)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two cameras with three pictures each, and label maps of table crackforest."""
    root = tmp_path / "pics"
    for camera in ("north", "south"):
        for i in range(3):
            _picture(root / "images" / camera / f"{i}.jpg", i)
            _label(root / "masks" / camera / f"{i}.png", int(camera == "south"))
    return root


def _fails(capsys: pytest.CaptureFixture[str], out: Path, *arguments: object) -> str:
    """Run the command, expect one sentence, exit code 2 and nothing left over; return the sentence."""
    beside = set(out.parent.iterdir()) if out.parent.is_dir() else set()
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments] + ["--out", str(out)])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    assert (set(out.parent.iterdir()) if out.parent.is_dir() else set()) == beside
    return message


def test_synthetic_by_domain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "shards"
    arguments = ["synthetic", "--out", str(out), "--images-per-site", "3", "--size", "48x64"]
    assert main([*arguments, "--eval-images", "2", "--sites", "3", "--seed", "4"]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "data",
        "eval.jsonl",
        "partition.json",
        "site-0.jsonl",
        "site-1.jsonl",
        "site-2.jsonl",
        "split.png",
    ]
    partition = read_partition(out)
    assert partition.root == out / "data" and partition.seed == 4
    assert partition.sites == {"site-0": 3, "site-1": 3, "site-2": 3}
    assert partition.histogram is not None
    assert sum(partition.histogram["site-0"]) == 3 * 48 * 64
    for shard in (*read_sites(out), read_shard(out / "eval.jsonl")):
        assert check_shard(shard, labels=True) == []
    with Image.open(out / "split.png") as picture:
        assert picture.width > 1000 and np.asarray(picture.convert("L")).std() > 20
    assert "countryside-dusk" in capsys.readouterr().out
    assert not [path for path in out.parent.iterdir() if path != out], "a stage was left behind"


def test_synthetic_scenes_of_a_root_are_used_again_but_not_mixed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["synthetic", "--root", str(tmp_path / "data"), "--size", "32x40", "--eval-images", "1"]
    arguments += ["--images-per-site", "2", "--by", "iid", "--sites", "2"]
    assert main([*arguments, "--out", str(tmp_path / "a")]) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*.jpg")}
    assert main([*arguments, "--out", str(tmp_path / "b")]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*.jpg")}
    for name in ("site-0.jsonl", "site-1.jsonl", "eval.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    capsys.readouterr()
    assert "holds other files" in _fails(capsys, tmp_path / "c", *arguments, "--seed", 1)


def test_folder_without_labels_searches_below_and_takes_top_folders(pictures: Path, tmp_path: Path) -> None:
    _picture(pictures / "images" / "north" / "deep" / "x.webp")
    _picture(pictures / "images" / ".thumbs" / "x.jpg")
    out = tmp_path / "shards"
    assert main(["folder", "--root", str(pictures / "images"), "--out", str(out)]) == 0
    partition = read_partition(out)
    assert partition.sites == {"site-0": 4, "site-1": 3}
    assert partition.domains == {"site-0": {"north": 4}, "site-1": {"south": 3}}
    assert partition.histogram is None and partition.classes is None


def test_folder_with_labels_and_the_labels_kept_out(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    arguments = ["folder", "--root", str(pictures), "--images", "images", "--labels", "masks"]
    arguments += ["--classes", "crackforest", "--by", "iid", "--sites", "2", "--no-labels", "--out", str(out)]
    assert main(arguments) == 0
    assert not any(shard.labelled for shard in read_sites(out))
    assert "label" not in (out / "site-0.jsonl").read_text()
    assert read_partition(out).histogram is None, "classes are not counted where no label may be opened"


def test_labels_beside_pictures_with_a_suffix(tmp_path: Path) -> None:
    for i in range(2):
        _picture(tmp_path / "d" / f"{i}.png", i)
        _label(tmp_path / "d" / f"{i}_mask.png", i)
    arguments = ["folder", "--root", str(tmp_path / "d"), "--labels", ".", "--label-suffix", "_mask"]
    arguments += ["--classes", "crackforest", "--by", "iid", "--sites", "2", "--out", str(tmp_path / "o")]
    assert main(arguments) == 0
    entries = [e for s in read_sites(tmp_path / "o") for e in s.entries]
    assert sorted((e.image, e.label) for e in entries) == [("0.png", "0_mask.png"), ("1.png", "1_mask.png")]


def test_dirichlet_over_classes_follows_the_seed(pictures: Path, tmp_path: Path) -> None:
    arguments = ["folder", "--root", str(pictures), "--images", "images", "--labels", "masks"]
    arguments += ["--classes", "crackforest", "--by", "dirichlet", "--alpha", "0.2", "--sites", "3"]
    for name in ("a", "b"):
        assert main([*arguments, "--out", str(tmp_path / name)]) == 0
    assert read_partition(tmp_path / "a").settings["over"] == "classes"
    for i in range(3):
        one, two = tmp_path / f"a/site-{i}.jsonl", tmp_path / f"b/site-{i}.jsonl"
        assert one.read_bytes() == two.read_bytes() and len(read_manifest(one, pictures)) >= 1


def test_damaged_pictures_can_be_left_out(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "images/south/1.jpg").write_bytes(b"\xff\xd8\xff")
    arguments = ["folder", "--root", pictures / "images", "--by", "iid", "--sites", 2]
    assert "south/1.jpg" in _fails(capsys, tmp_path / "o", *arguments)
    assert main([*map(str, arguments), "--skip-unreadable", "--out", str(tmp_path / "o")]) == 0
    assert sum(read_partition(tmp_path / "o").sites.values()) == 5
    assert "left out:" in capsys.readouterr().out


def test_overwrite_replaces_a_split_and_nothing_else(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o"
    arguments = ["folder", "--root", pictures / "images", "--by", "iid", "--sites"]
    assert main([*map(str, arguments), "3", "--out", str(out)]) == 0
    assert "holds a split already" in _fails(capsys, out, *arguments, 2)
    assert len(read_sites(out)) == 3
    assert main([*map(str, arguments), "2", "--overwrite", "--out", str(out)]) == 0
    assert not (out / "site-2.jsonl").exists() and len(read_sites(out)) == 2
    capsys.readouterr()
    (out / "notes.txt").write_text("mine")
    assert "holds other files (notes.txt)" in _fails(capsys, out, *arguments, 2, "--overwrite")
    assert (out / "notes.txt").read_text() == "mine" and len(read_sites(out)) == 2


def test_a_fault_while_writing_leaves_the_old_split(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o"
    arguments = ["folder", "--root", str(pictures / "images"), "--by", "iid", "--sites", "2"]
    assert main([*arguments, "--out", str(out)]) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("partitions.output.write_partition", full)
    capsys.readouterr()
    assert "No space left" in _fails(capsys, out, *arguments, "--overwrite")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["camvd"], "There is no data set 'camvd': did you mean 'camvid'"),
        (["folder", "--root", "ROOT", "--by", "domian"], "no rule 'domian': did you mean 'domain'"),
        (["folder", "--root", "ROOT", "--by", "iid"], "--by iid needs the number of sites"),
        (
            ["folder", "--root", "ROOT", "--by", "iid", "--sites", "7"],
            "--sites is 7 but there are only 6 images",
        ),
        (["folder", "--root", "ROOT", "--by", "iid", "--sites", "0"], "--sites is 0; expected at least 1"),
        (["folder", "--root", "ROOT", "--by", "iid", "--sites", "x"], "'--sites': 'x' is not a valid int"),
        (["folder", "--root", "ROOT", "--domain-level", "2"], "--domain-level is 2 but"),
        (["folder", "--root", "ROOT", "--domain-regex", "z(.)"], "finds no domain in"),
        (["folder", "--root", "ROOT", "--domain-csv", "gone.csv"], "--domain-csv gone.csv cannot be read"),
        (["folder", "--root", "ROOT", "--by", "dirichlet", "--sites", "2", "--alpha", "0"], "--alpha is 0.0"),
        (
            ["folder", "--root", "ROOT", "--by", "dirichlet", "--sites", "2", "--over", "classes"],
            "needs a label map",
        ),
        (["folder", "--root", "ROOT", "--classes", "nope"], "There is no class table 'nope'"),
        (["folder", "--root", "ROOT", "--labels", "../masks"], "lies outside --root"),
        (["folder", "--root", "ROOT", "--labels", "masks"], r"--labels .*masks is no folder"),
        (["folder", "--root", "ROOT", "--labels", "north"], "--labels is given without --classes"),
        (["folder", "--root", "ROOT/gone"], "is no folder; expected a folder of images"),
        (["folder"], "Missing option '--root'"),
        (["folder", "--root", "ROOT", "--colour", "red"], "No such option.*--colour"),
        (["folder", "--root", "ROOT", "--seed", "-1"], "'--seed': -1 is not"),
        (["camvid", "--root", "ROOT"], "expected the data set's own list of frames"),
        (["synthetic", "--size", "12"], "'12' is not a size .* HEIGHTxWIDTH"),
        (["synthetic", "--images-per-site", "0"], "'--images-per-site': 0 is not"),
        (["synthetic", "--sites", "0"], "--sites is 0; expected 1 to 1000"),
    ],
)
def test_bad_requests(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    given = [a.replace("ROOT", str(pictures / "images")) for a in arguments]
    assert re.search(sentence, _fails(capsys, tmp_path / "out", *given))


def test_bad_data_sets(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    assert "holds no images" in _fails(capsys, out, "folder", "--root", tmp_path / "empty")
    flat = tmp_path / "flat"
    _picture(flat / "a.png")
    assert "The images have no domains" in _fails(capsys, out, "folder", "--root", flat)
    labelled = [
        "folder",
        "--root",
        pictures,
        "--images",
        "images",
        "--labels",
        "masks",
        "--classes",
        "crackforest",
    ]
    _label(pictures / "masks/north/1.png", 7)
    assert "holds the value 7, which class table 'crackforest'" in _fails(capsys, out, *labelled)
    _label(pictures / "masks/north/1.png", 1, (32, 24))
    assert "is 32 x 24 but its label map" in _fails(capsys, out, *labelled)
    (pictures / "masks/north/1.png").unlink()
    assert "has no label map" in _fails(capsys, out, *labelled)


def test_no_write_permission(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(**_: object) -> str:  # as the system does; root would be let in by a real read-only folder
        raise PermissionError(13, "Permission denied")

    (tmp_path / "locked").mkdir()
    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    message = _fails(capsys, tmp_path / "locked/out", "folder", "--root", pictures / "images")
    assert "Permission denied; choose a folder that you may write to" in message


def test_output_that_cannot_be(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    arguments = ["folder", "--root", pictures / "images"]
    assert "is a file; give a folder" in _fails(capsys, tmp_path / "file", *arguments)
    assert "Cannot write --out" in _fails(capsys, tmp_path / "file" / "below", *arguments)


def test_output_inside_the_root_is_not_taken_for_pictures(pictures: Path) -> None:
    arguments = [
        "folder",
        "--root",
        str(pictures),
        "--images",
        "images",
        "--by",
        "iid",
        "--sites",
        "1",
        "--out",
    ]
    assert main([*arguments, str(pictures / "images" / "shards")]) == 0
    assert main([*arguments, str(pictures / "images" / "more")]) == 0
    assert read_partition(pictures / "images" / "more").sites == {"site-0": 6}


def test_the_module_runs_and_helps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "partitions", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)

    overview = run("--help")
    assert overview.returncode == 0 and all(
        name in overview.stdout for name in ("camvid", "synthetic", "folder")
    )
    with pytest.raises(SystemExit) as stop:
        main(["folder", "--help"])
    assert stop.value.code == 0 and "--domain-regex" in capsys.readouterr().out
    bad = run("folder", "--root", str(tmp_path), "--out", str(tmp_path / "o"))
    assert bad.returncode == 2 and bad.stderr.startswith("error: ") and bad.stderr.count("\n") == 1


@pytest.mark.shared
def test_camvid_by_domain(shared_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "camvid"
    assert main(["camvid", "--root", str(shared_data / "camvid"), "--by", "domain", "--out", str(out)]) == 0
    partition = read_partition(out)
    assert list(partition.sites.values()) == [31, 31, 34, 34, 33, 68, 40, 40, 56]
    assert partition.evaluation == {"dev": 57, "val": 101}
    assert read_shard(out / "dev.jsonl").labelled
    assert partition.histogram is not None
    dusk = np.asarray(partition.histogram["site-0"], dtype=float)
    assert 0.17 < dusk[3] / dusk.sum() < 0.21, "Road is 18 to 20 % at dusk"


@pytest.mark.shared
def test_camvid_road_and_crackforest_are_binary(shared_data: Path, tmp_path: Path) -> None:
    road = ["camvid", "--root", str(shared_data / "camvid"), "--classes", "camvid-road", "--quick"]
    assert main([*road, "--sites", "3", "--out", str(tmp_path / "road")]) == 0
    partition = read_partition(tmp_path / "road")
    assert list(partition.sites.values()) == [96, 135, 136] and partition.classes is not None
    assert partition.classes.names == ("rest", "Road") and partition.histogram is None
    crack = ["crackforest", "--root", str(shared_data / "crackforest"), "--no-labels"]
    assert main([*crack, "--out", str(tmp_path / "crack")]) == 0
    assert read_partition(tmp_path / "crack").sites == {
        "site-0": 17,
        "site-1": 16,
        "site-2": 17,
        "site-3": 24,
    }
    assert not read_shard(tmp_path / "crack/site-0.jsonl").labelled
    assert read_shard(tmp_path / "crack/val.jsonl").labelled


def test_many_synthetic_sites_are_a_site_each(tmp_path: Path) -> None:
    arguments = [
        "synthetic",
        "--sites",
        "22",
        "--size",
        "32x32",
        "--images-per-site",
        "1",
        "--eval-images",
        "1",
    ]
    assert main([*arguments, "--out", str(tmp_path / "o")]) == 0
    domains = read_partition(tmp_path / "o").domains
    assert len(domains) == 22 and all(sum(found.values()) == 1 for found in domains.values())


def test_pictures_are_never_lost_below_the_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A --root inside --out appears after the first look at --out; it must survive."""
    out = tmp_path / "o"
    arguments = ["synthetic", "--root", str(out / "mine"), "--size", "32x32", "--images-per-site", "1"]
    with pytest.raises(SystemExit):
        main([*arguments, "--eval-images", "0", "--sites", "1", "--out", str(out)])
    assert "holds other files (mine)" in capsys.readouterr().err
    assert list((out / "mine").rglob("*.jpg"))
