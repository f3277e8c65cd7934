"""Does a data set divide into a labelled source, sites without labels and targets, each image in its role?"""

from __future__ import annotations

from pathlib import Path

import pytest

from common.data.manifest import Entry, read_partition, read_shard, read_sites
from common.errors import UserError
from partitions.__main__ import partitions_main as main
from partitions.domains import Roles, adapt, parse_roles
from partitions.sources.base import Dataset
from tests.support.replicas import put_label, put_picture

DOMAINS = {"dusk": 2, "park": 3, "day": 4, "rain": 1}


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    """A replica: four train domains, a dev drive and a val drive; label values tell domains apart."""
    root = tmp_path / "camvid"
    rows = ["split,name,sequence,domain"]
    splits = {"train": DOMAINS, "dev": {"unseen": 2}, "val": {"street": 1}}
    for split, domains in splits.items():
        for value, (domain, count) in enumerate(domains.items()):
            for i in range(count):
                put_picture(root / f"{split}/images/{domain}_{i}.jpg")
                put_label(root / f"{split}/labels/{domain}_{i}.png", [value, 11])
                rows.append(f"{split},{domain}_{i},s,{domain}")
    (root / "splits").mkdir()
    (root / "splits/domains.csv").write_text("\n".join(rows) + "\n")
    return root


def _run(root: Path, out: Path, *words: str) -> None:
    assert main(["camvid", "--root", str(root), "--out", str(out), *words]) == 0


def _domains(folder: Path, name: str) -> list[str | None]:
    return [entry.domain for entry in read_shard(folder / f"{name}.jsonl").entries]


def test_every_domain_takes_its_role(camvid: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    _run(camvid, out, "--sites-of", "park,dusk", "--source", "day", "--score", "rain")
    partition = read_partition(out)
    assert partition.sites == {"site-0": 3, "site-1": 2} and partition.rule == "domain"
    assert partition.domains == {"site-0": {"park": 3}, "site-1": {"dusk": 2}}
    assert partition.evaluation == {"source": 4, "target": 1, "train_eval": 5, "dev": 2, "val": 1}
    assert set(_domains(out, "source")) == {"day"} and _domains(out, "target") == ["rain"]
    assert _domains(out, "train_eval") == ["park"] * 3 + ["dusk"] * 2
    assert partition.settings["source"] == "day" and not partition.settings["labels_in_site_manifests"]
    assert (out / "split.png").is_file()


def test_sites_name_no_label_and_all_others_do(camvid: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    _run(camvid, out, "--sites-of", "dusk,park", "--source", "day", "--score", "rain")
    sites = read_sites(out)
    assert all(entry.label is None for shard in sites for entry in shard.entries)
    for name in ("source", "target", "train_eval", "dev"):
        assert read_shard(out / f"{name}.jsonl").labelled
    trained = {entry.image for shard in sites for entry in shard.entries}
    assert {entry.image for entry in read_shard(out / "train_eval.jsonl").entries} == trained
    held_out = {e.image for name in ("source", "target") for e in read_shard(out / f"{name}.jsonl").entries}
    assert not trained & held_out


def test_the_class_mix_is_counted_once_per_image(camvid: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    _run(camvid, out, "--sites-of", "dusk,park", "--source", "day")
    histogram = read_partition(out).histogram
    assert histogram is not None
    assert histogram["site-0"] == [2 * 64, *[0] * 10], "half of each map of 8 x 16 is ignored"
    assert histogram["site-1"] == [0, 3 * 64, *[0] * 9]


def test_sites_may_be_divided_as_ever_and_a_domain_left_out(camvid: Path, tmp_path: Path) -> None:
    words = ["--sites-of", "dusk,park", "--source", "day", "--by", "iid", "--sites", "5"]
    _run(camvid, tmp_path / "o", *words)
    partition = read_partition(tmp_path / "o")
    assert list(partition.sites.values()) == [1] * 5
    assert "target" not in partition.evaluation and "rain" not in str(partition.domains)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("dusk", None, None), "--sites-of, --source and --score belong together"),
        ((None, "day", "rain"), "--sites-of, --source and --score belong together"),
        (("dusk,day", "day", None), "'day' is given to --sites-of and to --source; .* name it once"),
        (("dusk", "day", "dusk"), "'dusk' is given to --sites-of and to --score"),
    ],
)
def test_roles_that_contradict_each_other(words: tuple[str | None, ...], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        parse_roles(*words)


def test_no_role_is_no_adaptation() -> None:
    assert parse_roles(None, None, None) is None
    assert parse_roles(" a, b", "c", None) == {"--sites-of": ["a", "b"], "--source": ["c"], "--score": []}


def test_an_unknown_domain_gets_a_hint(
    camvid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        _run(camvid, tmp_path / "o", "--sites-of", "dusk,prak", "--source", "day")
    message = capsys.readouterr().err
    assert stop.value.code == 2 and not (tmp_path / "o").exists()
    assert (
        "There is no domain for --sites-of 'prak': did you mean 'park'? expected one of dusk, park, day, rain."
        in message
    )


def _roles(sites: str, source: str) -> Roles:
    return {"--sites-of": [sites], "--source": [source], "--score": []}


def test_a_source_needs_labels_but_sites_do_not() -> None:
    images = [Entry("a.png", None, "a"), Entry("b.png", "b_label.png", "b")]
    data = Dataset(images)
    assert "train_eval" not in adapt(data, _roles("a", "b")).evaluation
    with pytest.raises(UserError, match=r"a.png of source.jsonl has no label map"):
        adapt(data, _roles("b", "a"))


@pytest.mark.shared
def test_real_camvid_counts(shared_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    words = ["--sites-of", "dusk_a,carpark_a,carpark_b", "--source", "day_a,day_b,day_c,day_d"]
    _run(shared_data / "camvid", out, *words, "--score", "dusk_b,carpark_c", "--quick")
    partition = read_partition(out)
    assert list(partition.sites.values()) == [31, 34, 34]
    assert partition.evaluation == {"source": 204, "target": 64, "train_eval": 99, "dev": 57, "val": 101}
