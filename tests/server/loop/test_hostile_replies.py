"""Replies of one hostile site in every form: no run ends, each is refused by name, and the model is as without it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, Error, Message, RecordDict

from common.settings.schema import RunConfig
from server.loop import left_out
from server.loop.run import run
from tests.support.federation import local_grid, metrics, network_config, tiny_config
from tests.support.local_grid import Answer, LocalGrid

SITES, CROOK = 4, "site-3"
Change = Callable[[RecordDict], None]
Cases = dict[str, Change]
Real = Callable[[Message], Message]


def arrays(group: str, how: Callable[[dict[str, np.ndarray]], None], only: str = "") -> Change:
    """Change the arrays of a group, by name; ``only`` brings those whose names end so under this ending."""

    def change(content: RecordDict) -> None:
        record = content.array_records[group]
        names = {only: next(key for key in record if key.endswith(only))} if only else {k: k for k in record}
        found = {short: record[name].numpy().copy() for short, name in names.items()}
        how(found)
        for short, name in names.items():
            if short in found:
                record[name] = Array(np.ascontiguousarray(found[short]))
            else:
                del record[name]

    return change


def one(group: str, key: str, how: Callable[[np.ndarray], np.ndarray | None]) -> Change:
    """Replace one array, or take it away."""

    def change(found: dict[str, np.ndarray]) -> None:
        value = how(found.pop(key))
        if value is not None:
            found[key] = value

    return arrays(group, change, only=key)


def put(value: Any, at: int = 0) -> Callable[[np.ndarray], np.ndarray]:
    def how(array: np.ndarray) -> np.ndarray:
        array.flat[at] = value
        return array

    return how


def fact(key: str, value: Any) -> Change:
    def change(content: RecordDict) -> None:
        content.config_records["facts"][key] = value

    return change


def metric(key: str, value: float) -> Change:
    def change(content: RecordDict) -> None:
        content.metric_records["metrics"][key] = value

    return change


def generic(group: str, *keys: str, counts: tuple[str, ...] = ()) -> Cases:
    """Return what is wrong with any array: numbers, form, type, and that it is not there."""
    found: Cases = {}
    for key in keys:
        ways: dict[str, Callable[[np.ndarray], np.ndarray | None]] = {
            "more of it": lambda a: np.concatenate([np.atleast_1d(a)] * 2),
            "text": lambda a: a.astype("<U1"),
            "nowhere": lambda a: None,
            "one number": lambda a: np.zeros(1, a.dtype) if a.shape != (1,) else np.zeros(2, a.dtype),
        }
        if key in counts:
            ways |= {
                "below zero": put(-1),
                "huge": lambda a: put(np.iinfo(a.dtype).max)(a),
                "halves": lambda a: a.astype(np.float32) + 0.5,
            }
        else:
            ways |= {"nan": put(np.nan), "infinite": put(-np.inf), "huge": put(3e38, -1)}
        found |= {f"{group}/{key} {name}": one(group, key, how) for name, how in ways.items()}
    return found


def of_any(batches: bool = True) -> Cases:
    """Return what is wrong beside the arrays: who answers which question, how much it counts, what it measured."""
    found: Cases = {
        f"{key} {value!r}"[:60]: fact(key, value)
        for key, values in {
            "site": ("site-0", "", "x" * 70),
            "round": (0, 999, -1, "1"),
            "run-key": ("another", ""),
            "wire-version": (2, "3"),
            "weights-hash": ("0" * 64,),
            "fact.images": (0, -1, 11, 1 << 62, "many", True, 10.5),
            **({"fact.batches": (0, 99, -3)} if batches else {}),
        }.items()
        for value in values
    }
    found |= {f"{k} {v}": metric(k, v) for k, v in (("loss", np.inf), ("loss", 1e300), ("mean_cosine", 7.0))}
    found["images unnamed"] = lambda content: content.config_records["facts"].pop("fact.images")
    found["facts gone"] = lambda content: content.pop("facts")
    found["metrics without end"] = lambda content: [metric(f"m{i}", 0.0)(content) for i in range(70)] and None  # type: ignore[func-returns-value]
    found["one group more"] = lambda content: content.update(
        {"images": next(iter(content.array_records.values())).copy()}
    )
    return found


def matrix(kind: str, key: str, how: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Change a symmetric matrix that travels as a triangle."""

    def change(triangle: np.ndarray) -> np.ndarray:
        size = int((np.sqrt(8 * len(triangle) + 1) - 1) / 2)
        rows, columns = np.triu_indices(size)
        full = np.zeros((size, size))
        full[rows, columns] = full[columns, rows] = triangle
        return how(full)[rows, columns].astype(triangle.dtype)

    return one(kind, key, change)


def spiked(full: np.ndarray) -> np.ndarray:
    full[0, 1:] = full[1:, 0] = 0.9  # one channel correlates with all, which do not with each other
    return full


def scatter(kind: str) -> Cases:
    """Return what no patches have, of a closed form's sums."""
    last = ("difference",) if kind == "scatter" else ()
    found = generic(kind, "mean", "scale", "correlation", "weights", *last)
    found |= {
        f"{kind} scale below zero": one(kind, "scale", lambda a: -a),
        f"{kind} scale tiny": one(kind, "scale", lambda a: a * 1e-30),
        f"{kind} scale far from others": one(kind, "scale", lambda a: a * 100),
        f"{kind} mean of millions": one(kind, "mean", put(1e6)),
        f"{kind} correlation above one": one(kind, "correlation", put(3.0, 1)),
        f"{kind} correlation negated": one(kind, "correlation", lambda a: -a),
        f"{kind} correlation of nothing": matrix(kind, "correlation", spiked),
        f"{kind} counts none": one(kind, "weights", put(0.0)),
        f"{kind} counts below zero": one(kind, "weights", put(-350.0)),
        f"{kind} counts billions": one(kind, "weights", put(1e12)),
        f"{kind} counts one more": one(kind, "weights", lambda a: a + np.array([1.0, 0.0])),
        f"{kind} weighs pairs below zero": one(kind, "weights", put(-1.0, 1)),
        f"{kind} weighs a million pairs": one(kind, "weights", put(1e6, 1)),
    }
    if kind == "scatter":
        found |= {
            "difference negated": one(kind, "difference", lambda a: -a),
            "difference not positive": matrix(kind, "difference", spiked_twice),
            "difference of billions": one(kind, "difference", lambda a: a * 1e9),
        }
    return found


def spiked_twice(full: np.ndarray) -> np.ndarray:
    full[0, 1:] = full[1:, 0] = 10.0
    return full


def of_sums() -> Cases:
    """Return what is wrong with sums of codes beside their form."""

    def moved(found: dict[str, np.ndarray]) -> None:
        found["counts"][0] += found["counts"][1] + 1
        found["counts"][1] = 0

    def beside_no_count(found: dict[str, np.ndarray]) -> None:
        least, most = int(found["counts"].argmin()), int(found["counts"].argmax())
        found["counts"][most] += found["counts"][least]
        found["counts"][least], found["cosines"][least] = 0, 0
        found["sums"][least], found["sums"][least, 0] = 0, 5e-7

    def negated(found: dict[str, np.ndarray]) -> None:
        found["sums"], found["cosines"] = -found["sums"], -found["cosines"]

    def turned(found: dict[str, np.ndarray]) -> None:
        order = np.roll(np.arange(len(found["counts"])), 1)
        for key in ("sums", "counts", "cosines"):
            found[key] = found[key][order]

    return generic("sums", "sums", "counts", "cosines", counts=("counts",)) | {
        "sums: counts moved": arrays("sums", moved),
        "sums: a sum beside no count": arrays("sums", beside_no_count),
        "sums: negated": arrays("sums", negated),
        "sums: of other clusters": arrays("sums", turned),
        "sums: twice as many": arrays("sums", lambda found: found.update(counts=2 * found["counts"])),
        "sums: too long": one("sums", "sums", lambda a: a * 1e3),
        "sums: cosines of others": one("sums", "cosines", lambda a: -a),
        "sums: cosines above counts": one("sums", "cosines", lambda a: a + 1e3),
    }


def of_tables() -> Cases:
    names = ("shares", "entropies", "adjacency", "overlaps")
    return generic("sums", *names, counts=("shares", "adjacency", "overlaps")) | {
        "tables: shares one more": one("sums", "shares", lambda a: a + 1),
        "tables: entropies below zero": one("sums", "entropies", lambda a: -a - 1),
        "tables: entropies above any": one("sums", "entropies", lambda a: a + 1e3),
        "tables: ten times the neighbors": one("sums", "adjacency", lambda a: a * 10),
        "tables: neighbors of one alone": one(
            "sums", "adjacency", lambda a: put(a[0].sum())(np.zeros_like(a))
        ),
        "tables: overlaps turned": one("sums", "overlaps", lambda a: np.roll(a, 1, axis=2)),
        "tables: overlaps of millions": one("sums", "overlaps", lambda a: a + 1_000_000),
    }


def of_heads() -> Cases:
    def times(factor: float) -> Callable[[dict[str, np.ndarray]], None]:
        return lambda found: found.update({k: (factor * v).astype(v.dtype) for k, v in found.items()})

    found = generic("head", "linear.weight", "linear.bias")
    found |= generic("centroids", "centroids", "counts", counts=("counts",))
    found |= {f"head times {factor:g}": arrays("head", times(factor)) for factor in (-1, 1e-30, 0, 10, 1e6)}
    found["centroids tiny"] = one("centroids", "centroids", lambda a: a * np.float32(1e-30))
    found["centroids of millions"] = one("centroids", "centroids", lambda a: a * np.float32(1e7))
    found["centroids: counts of millions"] = one("centroids", "counts", lambda a: a + 10**7)
    return found | {"displacement below zero": metric("displacement", -1.0)}


def of_networks() -> Cases:
    def times(factor: float) -> Callable[[dict[str, np.ndarray]], None]:
        return lambda found: found.update({k: (factor * v).astype(v.dtype) for k, v in found.items()})

    return (
        generic("weights", "weight")
        | generic("statistics", "running_mean", "running_var")
        | {
            "variance below zero": one("statistics", "running_var", lambda a: -a - 1),
            "mean of 1e30": one("statistics", "running_mean", put(1e30)),
            "network tiny": arrays("weights", times(1e-30)),
            "network huge": arrays("weights", times(1e5)),
            "network of nothing": arrays("weights", times(0.0)),
        }
    )


def of_styles() -> Cases:
    return generic("style", "style") | {
        "style below zero": one("style", "style", lambda a: -a),
        "style brighter than light": one("style", "style", lambda a: a * np.float32(1e3)),
        "style of one edge": one("style", "style", put(1.0)),
        "style without light": one(
            "style",
            "style",
            lambda a: np.ones_like(a) * (np.arange(a.shape[2]) != a.shape[2] // 2).astype(a.dtype),
        ),
    }


def node_of(grid: LocalGrid, site: int) -> int:
    return next(node for node, given in grid.node_configs.items() if given["partition-id"] == site)


class Table:
    """One hostile site that answers each question with the next of its cases, by the group that it is asked for."""

    def __init__(self, cases: Mapping[str, Cases]) -> None:
        self.left = {group: list(found.items()) for group, found in cases.items()}
        self.used: list[str] = []

    def __call__(self, message: Message, real: Real) -> Answer:
        if message.metadata.message_type == "query.hello":
            return real(message)
        reply = real(message)
        groups = reply.content.array_records
        group = next((name for name in self.left if name in groups and self.left[name]), None)
        if group is None:
            return Error(code=0, reason="nothing left to lie about")
        name, change = self.left[group].pop(0)
        change(reply.content)
        self.used.append(name)
        return reply


def with_and_without(
    config: Callable[[Path, int], RunConfig], tmp_path: Path, cases: Mapping[str, Cases]
) -> tuple[Path, Path, Table]:
    """Run with the hostile site, and without it."""
    absent = local_grid(SITES)
    del absent.node_configs[node_of(absent, SITES - 1)]
    expected = run(absent, config(tmp_path / "without", SITES - 1))
    grid, table = local_grid(SITES), Table(cases)
    grid.faults[node_of(grid, SITES - 1)] = table
    return run(grid, config(tmp_path / "with", SITES)), expected, table


def check(found: Path, expected: Path, table: Table, cases: Mapping[str, Cases]) -> None:
    """Demand that every case was tried and refused by name, and that no model differs from that without the site."""
    assert not any(table.left.values()), {group: len(left) for group, left in table.left.items()}
    assert len(table.used) == sum(map(len, cases.values()))
    log = (found / "log.txt").read_text()
    reasons = [line for line in log.splitlines() if f"site {CROOK} is left out: " in line]
    refused = [line for line in reasons if "raised an error" not in line and "error code" not in line]
    assert len(refused) == len(table.used), "\n".join(refused)
    one, other = metrics(found), metrics(expected)
    for with_it, without in zip(one, other, strict=True):
        assert with_it["checkpoint_sha256"] == without["checkpoint_sha256"], with_it["quarantined"]
        assert with_it["miou"] == without["miou"] and with_it["counted"]
        assert CROOK in with_it["quarantined"] and CROOK not in with_it["sites"]


@pytest.fixture(autouse=True)
def asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask the hostile site in every round: else three cases would be all."""
    monkeypatch.setattr(left_out, "MOST_REFUSALS", 10**6)


DEFAULT = {"scatter": of_any() | scatter("scatter"), "sums": of_any() | of_sums()}
LABEL_FREE = {"moments": of_any() | scatter("moments"), "sums": of_sums() | of_tables()}
FUSS = {"head": of_any() | of_heads()}
CONFUSION = {
    "confusion": generic("confusion", "confusion", counts=("confusion",))
    | {"confusion of 2^63": one("confusion", "confusion", lambda a: a.astype(np.uint64) + np.uint64(1 << 63))}
}
TABLES: dict[str, tuple[dict[str, Cases], dict[str, Any]]] = {
    "default": (DEFAULT, {"preset": "default", "centroids__polish_passes": 0}),
    "fuss-ref": (FUSS, {"preset": "fuss-ref", "local__steps": 1}),
    "label-free": (
        LABEL_FREE,
        {
            "preset": "label-free",
            "model__pixels": 0,
            "model__clusters": 4,
            "model__dim": 8,
            "codes__reach": 0.0,
            "centroids__over": 6,
            "centroids__starts": 2,
        },
    ),
}
NETWORKS: dict[str, tuple[dict[str, Cases], dict[str, Any]]] = {
    "supervised": ({"weights": of_any() | of_networks()}, {"task": "supervised"}),
    "adaptation": (
        {"style": of_any(batches=False) | of_styles(), "weights": of_any() | of_networks()},
        {
            "task": "adaptation",
            "style__transfer": "fourier",
            "clusters__layers": "decoder",
            "clusters__exact": 2,
            "teacher__update": "mean",
        },
    ),
}


def rounds_for(cases: Mapping[str, Cases]) -> int:
    return max(map(len, cases.values())) + 1


def test_there_are_enough_cases() -> None:
    assert (
        sum(len(found) for cases, _ in [*TABLES.values(), *NETWORKS.values()] for found in cases.values())
        >= 120
    )


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "default" else pytest.mark.long) for n in TABLES]
)
def test_no_reply_about_a_frozen_backbone_ends_a_run_or_moves_its_model(
    name: str, tmp_path: Path, scenes: Path
) -> None:
    cases, settings = TABLES[name]
    base = {"eval__shard": "", "rounds": rounds_for(cases), "model__stages": "1,3", "local__batch": 4}

    def config(folder: Path, sites: int) -> RunConfig:
        return tiny_config(scenes, folder, sites, **(base | settings))

    found, expected, table = with_and_without(config, tmp_path, cases)
    check(found, expected, table, cases)


@pytest.mark.long
@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("name", NETWORKS)
def test_no_reply_about_a_network_ends_a_run_or_moves_its_model(
    name: str, tmp_path: Path, scenes: Path
) -> None:
    cases, settings = NETWORKS[name]

    def config(folder: Path, sites: int) -> RunConfig:
        given = {"eval__shard": "", "rounds": rounds_for(cases), "local__batch": 4} | settings
        return network_config(scenes, folder, sites, **given)

    found, expected, table = with_and_without(config, tmp_path, cases)
    check(found, expected, table, cases)


@pytest.mark.long
def test_no_count_of_a_score_ends_a_run(tmp_path: Path, scenes: Path) -> None:
    def config(folder: Path, sites: int) -> RunConfig:
        given = {"eval__where": "sites", "eval__shard": "{site}.jsonl", "rounds": rounds_for(CONFUSION)}
        return tiny_config(scenes, folder, sites, **given, model__stages="1,3", centroids__polish_passes=0)

    # who lies about scores was never there while training, in either run
    found, expected, table = with_and_without(config, tmp_path, {**CONFUSION, "none": {}})
    assert len(table.used) == len(CONFUSION["confusion"])
    for with_it, without in zip(metrics(found), metrics(expected), strict=True):
        assert with_it["checkpoint_sha256"] == without["checkpoint_sha256"]
        assert with_it["miou"] == without["miou"] and CROOK in with_it["quarantined"]


GREETINGS: Cases = {
    f"{key} {value!r}"[:60]: fact(key, value)
    for key, values in {
        "fact.images": (0, -1, 1 << 40, 1 << 26, "many", True, 2.5),
        "fact.channels": (0, 1 << 33, 17, -5),
        "fact.grid-height": (0, 1 << 33, 1, 1000),
        "fact.grid-width": (1 << 62, 3),
        "weights-hash": ("0" * 64, ""),
        "site": ("site-0", "no name", "", "x" * 70),
        "run-key": ("another",),
        "wire-version": (2,),
    }.items()
    for value in values
} | {"nameless": lambda content: content.pop("facts"), "late error": fact("fact.error", "x" * 9000)}


@pytest.mark.parametrize("first", [True, False], ids=["lowest node ids", "highest node ids"])
def test_no_greeting_ends_a_run_or_outvotes_the_others(tmp_path: Path, scenes: Path, first: bool) -> None:
    """Every wrong greeting has a node of its own; the sites that agree are the run, whoever has the lowest id."""
    settings = {"eval__shard": "", "rounds": 2, "model__stages": "1,3"}
    honest = {100 + i: {"partition-id": i, "num-partitions": SITES} for i in range(SITES - 1)}
    expected = run(grid_of(honest, {}), tiny_config(scenes, tmp_path / "without", SITES - 1, **settings))
    # without registered keys a name belongs to whom greets first
    told = {name: change for name, change in GREETINGS.items() if not (first and name == "site 'site-0'")}
    crooks = {(2 if first else 200) + i: change for i, change in enumerate(told.values())}
    grid = grid_of(honest, {node: crook(scenes, tmp_path, node) for node in crooks})
    for node, change in crooks.items():
        grid.faults[node] = lying(change)
    found = run(grid, tiny_config(scenes, tmp_path / "with", SITES - 1, **settings))
    for with_it, without in zip(metrics(found), metrics(expected), strict=True):
        assert with_it["checkpoint_sha256"] == without["checkpoint_sha256"]
        assert with_it["sites"] == [f"site-{i}" for i in range(SITES - 1)]
        names = " ".join(with_it["quarantined"])
        unnamed = [
            node
            for node in crooks
            if f"crook-{node}" not in names and f"node-{node}" not in names and f"node {node}" not in names
        ]
        assert unnamed == []


def grid_of(*nodes: dict[int, dict[str, Any]]) -> LocalGrid:
    grid = local_grid(1)
    grid.node_configs = {node: given for part in nodes for node, given in part.items()}
    return grid


def crook(scenes: Path, folder: Path, node: int) -> dict[str, Any]:
    return {
        "site": f"crook-{node}",
        "shard": str(scenes / "site-3.jsonl"),
        "cache": str(folder / "cache"),
        "threads": 1,
    }


def lying(change: Change) -> Callable[[Message, Real], Answer]:
    def fault(message: Message, real: Real) -> Answer:
        if message.metadata.message_type != "query.hello":
            return Error(code=0, reason="it was never asked for more")
        reply = real(message)
        change(reply.content)
        return reply

    return fault
