"""Settings sections of task `unsupervised`: frozen model, feature cache, local steps, centroids."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from common.settings.section import Section


class Model(Section):
    """Frozen backbone and trainable head."""

    backbone: str = Field(
        "mobilenet_v2", description="a name of `list backbones`, or any vision transformer or CNN of timm"
    )
    weights: str = Field(
        "pretrained",
        description="'pretrained', 'random', or the path of a safetensors file; 'PATH,pretrained': the file if it is "
        "there",
    )
    blocks: str = Field(
        "",
        description="ViT blocks or CNN stages whose outputs are concatenated, counted from 0, as '10' or '8,10'; "
        "empty: the last one (mobilenet_v2: those of stages)",
    )
    final_norm: bool = Field(True, description="ViT: put tokens through the network's last norm")
    depth: int = Field(0, ge=0, description="ViT blocks; 0: as many as the timm model has")
    stages: str = Field("13,17", description="mobilenet_v2: indices of torchvision's features to concatenate")
    feature: Literal["tokens", "keys", "values"] = Field(
        "tokens", description="ViT: what a block puts out, or its attention's keys, or its projected values"
    )
    stride: int = Field(
        0,
        ge=0,
        description="pixels between features, a divisor of the backbone's own stride (0), reached by shifted "
        "passes: half of it costs four passes",
    )
    window: int = Field(
        0, ge=0, description="side of windows that overlap by half and are averaged; 0: the whole image"
    )
    scales: str = Field(
        "1", description="sizes of the input relative to height and width, averaged, as '1' or '0.5,1,1.5'"
    )
    height: int = Field(225, ge=32, description="input height in pixels")
    width: int = Field(305, ge=32, description="input width in pixels")
    pixels: int = Field(
        0,
        ge=0,
        description="input pixels of an image, whose sides then follow the images (height and width do not count); "
        "0: height and width",
    )
    resize: Literal["bilinear", "nearest"] = Field("bilinear", description="how images reach the input size")
    crop: Literal["none", "center"] = Field(
        "none", description="none: squash; center: shorter side, then crop"
    )
    normalize: Literal["auto", "imagenet", "model", "image"] = Field(
        "auto",
        description="mean and std; auto: the timm model's own if 'pretrained', else ImageNet's; "
        "image: each picture's own, which takes light and tint away",
    )
    # 27: the classes that published work scores on Cityscapes and on COCO-Stuff
    clusters: int = Field(
        27, ge=2, le=255, description="K, the number of semantic centroids; labels are bytes, 255 means none"
    )
    dim: int = Field(24, ge=2, description="length of a code")
    dropout: float = Field(0.1, ge=0, lt=1, description="channel dropout of the features while training")
    nonlinear: bool = Field(False, description="add a two-layer branch to the linear one")

    @field_validator("weights")
    @classmethod
    def _weights(cls, value: str) -> str:
        """Take the first file that is there, or what stands last; sites are told what was taken."""
        if "," not in value or Path(value).expanduser().is_file():
            return value
        *files, last = (part.strip() for part in value.split(","))
        return next((file for file in files if Path(file).expanduser().is_file()), last)

    @field_validator("blocks")
    @classmethod
    def _blocks(cls, value: str) -> str:
        parts = [part.strip() for part in value.split(",")] if value.strip() else []
        if not all(part.isdigit() for part in parts):
            raise ValueError("expected indices from 0 separated by commas, for example '8,10', or nothing")
        return ",".join(parts)

    @field_validator("scales")
    @classmethod
    def _scales(cls, value: str) -> str:
        try:
            scales = [float(part) for part in value.split(",")]
        except ValueError:
            scales = []
        if not scales or not all(0.1 <= scale <= 10 for scale in scales):
            raise ValueError("expected numbers from 0.1 to 10 separated by commas, for example '0.5,1'")
        return ",".join(f"{scale:g}" for scale in scales)

    @field_validator("stages")
    @classmethod
    def _stages(cls, value: str) -> str:
        parts = [part.strip() for part in value.split(",")]
        if not all(part.isdigit() and int(part) <= 18 for part in parts):
            raise ValueError("expected indices 0 to 18 separated by commas, for example '13,17'")
        return ",".join(parts)


class Cache(Section):
    """The feature cache on a site's disk."""

    dtype: Literal["float16", "float32"] = Field("float16", description="float16 halves the disk space")
    mixed_precision: bool = Field(
        False, description="float16 arithmetic of the backbone on CUDA; the CPU stays at float32"
    )
    batch: int = Field(
        0,
        ge=0,
        description="images that the backbone sees at once; 0: 16 on a GPU (fewer where they do not fit), 2 on a CPU",
    )
    views: int = Field(
        0, ge=0, description="augmented views per image, each as large as the image's features"
    )


class Local(Section):
    """Local work of one site in one round."""

    steps: int = Field(12, ge=0, description="optimizer steps per round; 0: count epochs instead")
    epochs: int = Field(1, ge=1, description="passes over the shard per round, where steps is 0")
    batch: int = Field(8, ge=1, description="images per step")
    lr: float = Field(5e-4, gt=0, description="Adam learning rate of the head")
    centroid_lr: float = Field(5e-3, gt=0, description="Adam learning rate of locally optimized centroids")
    neighbours: int = Field(7, ge=1, description="nearest images of the shard that may serve as positives")
    neighbour_dropout: float = Field(
        0.0, ge=0, lt=1, description="share of an image's channels that the search for its neighbours misses"
    )
    clip_norm: float = Field(0.0, ge=0, description="largest norm of the gradient of a step; 0: no limit")
    keep_optimizer: bool = Field(False, description="keep Adam's moments on the site between rounds")
    prox_mu: float = Field(0.0, ge=0, description="FedProx strength; 0: off")
    prox_parameters: Literal["all", "nonlinear"] = Field("all", description="what FedProx pulls back")
    moon_weight: float = Field(0.0, ge=0, description="weight of the model-contrastive term; 0: off")
    # as in MOON (Li et al., CVPR 2021)
    moon_temperature: float = Field(0.5, gt=0, description="temperature of the model-contrastive term")


class Centroids(Section):
    """How the K semantic centroids are found and merged."""

    merge: str = Field("lloyd", description="rule that merges the sites' centroids; see `list rules`")
    share: Literal["both", "head", "centroids", "none"] = Field(
        "both", description="what the server merges; 'none' is local-only training"
    )
    local: Literal["cosine", "modularity"] = Field(
        "cosine", description="what a site fits its centroids by, where it does"
    )
    spherical: bool = Field(True, description="fedcc: cluster directions (cosine) instead of raw vectors")
    weighted: bool = Field(True, description="fedcc: weight a site's centroid by its number of patches")
    keep_index: bool = Field(True, description="fedcc: number the new centroids after the current ones")
    empty: Literal["keep", "split"] = Field(
        "split",
        description="lloyd: a cluster without patches keeps its centroid or splits the widest cluster",
    )
    momentum: float = Field(0.0, ge=0, lt=1, description="lloyd: running average of the sums over rounds")
    over: int = Field(
        0,
        ge=0,
        le=1024,
        description="clusters that are found first, then joined to model.clusters by average linkage; 0: no joining",
    )
    starts: int = Field(
        1,
        ge=1,
        le=64,
        description="sets of centroids that are fitted side by side; the most compact one is kept",
    )
    reset_round: int = Field(
        0,
        ge=0,
        description="round before which the centroids that sites fit are drawn anew (STEGO's reset probe); 0: never",
    )
    polish_passes: int = Field(
        0, ge=0, description="passes of exact k-means over all sites after the last round"
    )
