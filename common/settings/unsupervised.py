"""Settings sections of task `unsupervised`: frozen model, feature cache, local steps, objective, centroids."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from common.settings.section import Section


class Model(Section):
    """Frozen backbone and trainable head."""

    backbone: str = Field("mobilenet_v2", description="'mobilenet_v2' or any timm ViT by name")
    weights: str = Field(
        "pretrained", description="'pretrained', 'random', or the path of a safetensors file"
    )
    depth: int = Field(0, ge=0, description="ViT blocks; 0: as many as the timm model has")
    stages: str = Field("13,17", description="mobilenet_v2: indices of torchvision's features to concatenate")
    feature: Literal["tokens", "keys"] = Field(
        "tokens", description="ViT: normed patch tokens or last-block keys"
    )
    height: int = Field(225, ge=32, description="input height in pixels")
    width: int = Field(305, ge=32, description="input width in pixels")
    resize: Literal["bilinear", "nearest"] = Field("bilinear", description="how images reach the input size")
    crop: Literal["none", "center"] = Field(
        "none", description="none: squash; center: shorter side, then crop"
    )
    normalize: Literal["auto", "imagenet", "model", "image"] = Field(
        "auto",
        description="mean and std; auto: the timm model's own if 'pretrained', else ImageNet's; "
        "image: each picture's own, which takes light and tint away",
    )
    clusters: int = Field(
        27, ge=2, le=255, description="K, the number of semantic centroids; labels are bytes, 255 means none"
    )
    dim: int = Field(24, ge=2, description="length of a code")
    dropout: float = Field(0.1, ge=0, lt=1, description="channel dropout of the features while training")
    nonlinear: bool = Field(False, description="add a two-layer branch to the linear one")

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
    views: int = Field(
        0, ge=0, description="augmented views per image, each as large as the image's features"
    )


class Local(Section):
    """Local work of one site in one round."""

    steps: int = Field(12, ge=0, description="optimiser steps per round; 0: count epochs instead")
    epochs: int = Field(1, ge=1, description="passes over the shard per round, where steps is 0")
    batch: int = Field(8, ge=1, description="images per step")
    lr: float = Field(5e-4, gt=0, description="Adam learning rate of the head")
    centroid_lr: float = Field(5e-3, gt=0, description="Adam learning rate of locally optimised centroids")
    neighbours: int = Field(7, ge=1, description="nearest images of the shard that may serve as positives")
    neighbour_dropout: float = Field(
        0.0, ge=0, lt=1, description="share of an image's channels that the search for its neighbours misses"
    )
    clip_norm: float = Field(0.0, ge=0, description="largest norm of the gradient of a step; 0: no limit")
    keep_optimizer: bool = Field(False, description="keep Adam's moments on the site between rounds")
    prox_mu: float = Field(0.0, ge=0, description="FedProx strength; 0: off")
    prox_parameters: Literal["all", "nonlinear"] = Field("all", description="what FedProx pulls back")
    moon_weight: float = Field(0.0, ge=0, description="weight of the model-contrastive term; 0: off")
    moon_temperature: float = Field(0.5, gt=0, description="temperature of the model-contrastive term")


class Loss(Section):
    """The self-supervised objective of the head."""

    objective: Literal["spectral", "correspondence", "smoothness", "modularity"] = Field(
        "spectral", description="what the head is fitted to; spectral: in closed form, from sums"
    )
    spectral_tolerance: float = Field(
        0.1, gt=0, description="spectral: colour difference of like neighbours, in medians of the image"
    )
    spectral_ridge: float = Field(0.02, gt=0, description="spectral: share of the identity in the noise")
    spectral_whiten: float = Field(
        0.0, ge=0, le=1, description="spectral: 0 weighs directions by signal to noise, 1 all alike"
    )
    correspondence_weight: float = Field(1.0, ge=0, description="of the correspondence loss")
    intra_weight: float = Field(0.67, ge=0, description="weight of an image against itself")
    inter_weight: float = Field(0.25, ge=0, description="weight of an image against a neighbour")
    negative_weight: float = Field(0.63, ge=0, description="weight of an image against others of the batch")
    shift: Literal["fixed", "auto"] = Field("fixed", description="auto: shifts follow the batch statistics")
    intra_shift: float = Field(0.18, description="correspondence: shift within an image")
    inter_shift: float = Field(0.12, description="correspondence: shift against a similar image")
    negative_shift: float = Field(0.46, description="correspondence: shift against any other image")
    samples: int = Field(11, ge=2, description="side of the grid of random positions per image")
    negatives: int = Field(5, ge=1, description="random partners per step in the negative term")
    negative_draw: Literal["derangement", "published"] = Field(
        "derangement",
        description="published: STEGO's draw, where an image may be drawn twice, and a single one meets itself",
    )
    salience: bool = Field(False, description="draw 90 % of the positions from patches that stand out")
    pointwise: bool = Field(True, description="centre the feature correlations row by row")
    zero_clamp: bool = Field(True, description="no gradient where code correlations are below 0")
    stabilize: bool = Field(False, description="clamp code correlations at 0.8")
    smooth_intra_shift: float = Field(-0.02, description="smoothness: shift within an image")
    smooth_negative_shift: float = Field(0.5, description="smoothness: shift against another image")
    temperature: float = Field(0.1, gt=0, description="smoothness: of the soft assignment to prototypes")
    momentum: float = Field(
        0.998, ge=0, le=1, description="smoothness: how slowly the teacher prototypes follow"
    )
    codebook: int = Field(256, ge=2, description="modularity: codes in the codebook")
    codebook_rounds: int = Field(
        1, ge=0, description="modularity: rounds that fit the codebook before the head"
    )
    projection: int = Field(128, ge=2, description="modularity: length of the vectors that are contrasted")
    cell: int = Field(2, ge=1, description="modularity: one patch of every square of this side is looked at")
    reconstruction_weight: float = Field(0.0, ge=0, description="decoding features from codes; 0: off")
    augmentation_weight: float = Field(0.0, ge=0, description="codes of augmented views agree; 0: off")
    crf_weight: float = Field(0.0, ge=0, description="near patches of like colour agree; 0: off")
    crf_samples: int = Field(1000, ge=2, description="crf: patches compared per step")
    crf_appearance: float = Field(10.0, ge=0, description="crf: weight of the kernel on place and colour")
    crf_closeness: float = Field(3.0, ge=0, description="crf: weight of the kernel on place alone")
    crf_alpha: float = Field(0.5, gt=0, description="crf: squared reach in place, with colour")
    crf_beta: float = Field(0.15, gt=0, description="crf: squared reach in colour")
    crf_gamma: float = Field(0.05, gt=0, description="crf: squared reach in place alone")
    crf_shift: float = Field(0.0, description="crf: affinity at which attraction turns into repulsion")


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
    polish_passes: int = Field(
        0, ge=0, description="passes of exact k-means over all sites after the last round"
    )
