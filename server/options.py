"""Options that several of the server's commands have, as types of their parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from common.system.cli import parse_size

CheckpointPath = Annotated[Path, typer.Option(metavar="C", help="File or run directory.")]
ShardsFolder = Annotated[Path | None, typer.Option(metavar="DIR", help="Folder that `partitions` made.")]
RunFolder = Annotated[Path | None, typer.Option(metavar="D", help="Results (default: runs/NAME-seedSEED).")]
ResumePath = Annotated[Path | None, typer.Option(metavar="C", help="Checkpoint or run directory to resume.")]
GpuShare = Annotated[float, typer.Option("--gpus-per-site", metavar="G", help="Share of a GPU per site.")]
ClassesName = Annotated[str | None, typer.Option(metavar="T", help="Class table: a name or a JSON file.")]
JsonPath = Annotated[
    Path | None, typer.Option("--json", metavar="OUT", help="Write all figures to this file.")
]
Crf = Annotated[bool, typer.Option("--crf", help="Refine with a dense CRF.")]
Flip = Annotated[bool, typer.Option("--flip", help="Average with the mirrored image.")]
SiteName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="One site's own model; `evaluate` also takes all (see centroids.share)."
    ),
]
ProtocolName = Annotated[
    Literal["label-size", "center-320"],
    typer.Option(metavar="P", help="label-size, or center-320: the center crop of 320 pixels as published."),
]


def _cluster(text: str) -> int | str:
    """Read ``auto``, ``global`` or the number of a style cluster."""
    if text not in ("auto", "global") and not text.isdigit():
        raise typer.BadParameter(f"{text!r} is not auto, global or the number of a style cluster")
    return int(text) if text.isdigit() else text


ClusterChoice = Annotated[
    Any,
    typer.Option(
        parser=_cluster,
        metavar="auto|global|N",
        help="With style clusters: that of the image's style, the shared model, or cluster N's.",
    ),
]


SkipUnreadable = Annotated[
    bool, typer.Option("--skip-unreadable", help="Go on without images that cannot be read.")
]
# segmenting goes on by default; one name a direction keeps the help on one screen
NoSkipUnreadable = Annotated[
    bool, typer.Option("--no-skip-unreadable", help="End at an image that cannot be read.")
]
KeepMasks = Annotated[bool, typer.Option("--keep-masks", help="Segment masks beside images too.")]
Channels = Annotated[
    str | None, typer.Option(metavar="R,G,B", help="Of images with more channels: which are seen.")
]
Window = Annotated[
    str | None, typer.Option(metavar="LOW,HIGH", help="Of images of more than 8 bits: black and white.")
]
OnnxPath = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="The ONNX file.")]
HubFolder = Annotated[
    Path | None, typer.Option("--hub", metavar="DIR", help="A folder for a model hub, with a card.")
]
ImageSize = Annotated[
    Any,
    typer.Option(
        "--size",
        parser=parse_size,
        metavar="HxW",
        help="Of the images of a whole model (default: as scored, or as training cut them).",
    ),
]
