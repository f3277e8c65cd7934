"""Names of clusters: a small TOML file, joining by the same name, and the checkpoint that uses them from then on.

Clusters of one name are one class. `NOTHING` is a class of its own that overlays leave as it is. Where a class table of
labelled images is at hand, clusters are named by the class that most of their pixels have.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.checkpoint import checkpoint_file, load_checkpoint, rename_classes
from common.data.classes import ClassTable, distinct_colours
from common.data.images import Bytes
from common.data.manifest import Shard
from common.errors import UserError
from common.evaluation.certainty import count_clusters
from common.evaluation.metrics import Confusion, Scores, match, scores, sum_confusions
from common.evaluation.overlay import NOTHING, VOID_COLOUR
from common.system.atomic import atomic_write_text
from common.system.cli import Progress

NAMES_FILE = "names.toml"
_LONGEST = 60  # characters of a name: legends have no room for more


def names_toml(names: Sequence[str], where: str) -> str:
    """Write names as TOML; a cluster without one has an empty text."""
    lines = [
        f"# Names of the clusters of {where}. The same name joins clusters; '{NOTHING}' marks what is none.",
        "[names]",
    ]
    # a JSON text is a TOML text
    return (
        "\n".join(
            [*lines, *(f"{k} = {json.dumps(name, ensure_ascii=False)}" for k, name in enumerate(names))]
        )
        + "\n"
    )


def parse_names(text: str, clusters: int, where: str) -> list[str]:
    """Read what `names_toml` wrote: a name for each of K clusters, empty where there is none.

    Raises `UserError` for anything else.
    """
    try:
        given = tomllib.loads(text).get("names")
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{where} is no TOML ({error}); correct it.") from None
    if not isinstance(given, dict):
        raise UserError(f'{where} has no table [names]; expected lines such as 3 = "road" below it.')
    names = [""] * clusters
    for key, name in given.items():
        if not (key.isdigit() and int(key) < clusters):
            raise UserError(f"{where} names the cluster {key!r}; expected numbers from 0 to {clusters - 1}.")
        if not isinstance(name, str) or len(name) > _LONGEST or not (name.isprintable() or not name):
            raise UserError(
                f"{where} calls cluster {key} {name!r}; expected a text of at most {_LONGEST} characters."
            )
        names[int(key)] = " ".join(name.split())
    return names


def table_of(names: Sequence[str], known: ClassTable | None = None) -> tuple[ClassTable, list[int]]:
    """Return a class table of names, and the class of each cluster; those without a name keep their number (-1).

    Names of ``known`` keep their colors. Raises `UserError` where nothing is named.
    """
    chosen = list(dict.fromkeys(name for name in names if name))
    if not chosen:
        raise UserError("No cluster has a name; give at least one.")
    if len(chosen) == 1:  # a table has two classes at least
        chosen.append(NOTHING if chosen[0] != NOTHING else "something")
    palette = {} if known is None else dict(zip(known.names, known.colours, strict=True))
    spare = iter([c for c in distinct_colours(len(chosen) + len(palette) + 1) if c not in palette.values()])
    palette = {name: palette[name] if name in palette else next(spare) for name in chosen}
    if NOTHING in palette:
        palette[NOTHING] = VOID_COLOUR
    table = ClassTable(name="named", names=tuple(chosen), colours=tuple(palette.values()))
    return table, [chosen.index(name) if name else -1 for name in names]


def apply_names(run: Path, names: Sequence[str], known: ClassTable | None = None) -> Path:
    """Write names into the newest checkpoint of a run (or the file given), and into `NAMES_FILE` beside the rounds.

    Segmenting, exporting and the report use them from then on. Returns the TOML file.
    """
    file = checkpoint_file(run)
    table, mapping = table_of(names, known)
    rename_classes(file, table, mapping)
    folder = file.parent.parent if file.parent.name == "checkpoints" else file.parent
    path = folder / NAMES_FILE
    atomic_write_text(path, names_toml(names, str(run)))
    return path


def known_names(run: Path, clusters: int) -> list[str]:
    """Return the names that a checkpoint has so far; empty texts where it has none."""
    saved = load_checkpoint(run)
    if saved.mapping is None or saved.classes is None:
        return [""] * clusters
    return [saved.classes.names[matched] if matched >= 0 else "" for matched in saved.mapping]


@dataclass(frozen=True)
class NamedByLabels:
    """Names that labels give to clusters, and how good they are on images that did not choose them.

    ``score`` is taken crosswise: names chosen on either half of the images are scored on the other, counts added.
    ``seen`` is the score on the very images that chose them, which is flattering.
    """

    names: list[str]
    classes: ClassTable
    images: int
    score: Scores | None
    seen: Scores


def name_by_labels(
    predict: Callable[[Bytes], Bytes], shard: Shard, clusters: int, progress: Progress | None = None
) -> NamedByLabels:
    """Name each cluster by the class that most of its labelled pixels have; a cluster that no label meets has none.

    Raises `UserError` where the shard has no labels or no class table.
    """
    order = [index for index, entry in enumerate(shard.entries) if entry.label is not None]
    if not order or shard.classes is None:
        raise UserError(
            f"{shard.path} names no label, or has no class table; give a labelled manifest, and --classes where it "
            "has none."
        )
    halves: list[Confusion] = []
    for part in (order[::2], order[1::2]):
        found = count_clusters(predict, shard, clusters, order=part, progress=progress)
        assert found.confusion is not None, "labels and a table are there"
        halves.append(found.confusion)
    both = sum_confusions({str(i): half.matrix for i, half in enumerate(halves)})
    mapping = match(both, "many-to-one")
    return NamedByLabels(
        [shard.classes.names[c] if c >= 0 else "" for c in mapping],
        shard.classes,
        len(order),
        _crosswise(*halves),
        scores(both, mapping),
    )


def _crosswise(first: Confusion, second: Confusion) -> Scores | None:
    """Score names of either half on the other; None where a half has no labelled pixel."""
    if not first.total or not second.total:
        return None
    classes = first.classes
    counts = np.zeros((classes + 1, classes), dtype=np.int64)  # the last row: clusters without a name
    for chosen_on, scored_on in ((first, second), (second, first)):
        mapping = match(chosen_on, "many-to-one")
        np.add.at(counts, np.where(mapping < 0, classes, mapping), scored_on.matrix)
    return scores(sum_confusions({"both": counts}), np.array([*range(classes), -1]))


def names_text(named: NamedByLabels) -> str:
    """Return the outcome as lines for a terminal."""
    count = len(set(filter(None, named.names)))
    lines = [
        f"{sum(map(bool, named.names))} clusters named by {named.images} labelled images: {count} classes"
    ]
    if named.score is None:
        lines.append(
            "  too few images for an honest score: names need half of them, the score the other half"
        )
    else:
        lines.append(
            f"  mIoU {100 * named.score.miou:.1f} %, accuracy {100 * named.score.accuracy:.1f} % on images that did "
            f"not choose the names (chosen on one half, scored on the other, both ways)"
        )
    return "\n".join(
        [*lines, f"  {100 * named.seen.miou:.1f} % on the images that chose them, which flatters"]
    )
