"""Which settings does a run have, what do they mean, and which values are allowed?

Flower hands over flat scalars with dotted keys (``local.steps = 12``); recipes are TOML files with the
same keys. `load_config` turns them into a frozen `RunConfig`. Defaults stand here and nowhere else:
those that a preset governs are the values of preset ``default``; the other presets are differences to
it (``common/settings/presets.py``). Secrets never live in settings.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from common.errors import UserError
from common.settings.network import Clusters, Network, Reduction, Sgd, Source, Style, Teacher, Transforms
from common.settings.presets import FROM_PRESET, PRESETS
from common.settings.privacy import Privacy
from common.settings.rules import privacy_conflict, sharing_conflict, unsupervised_conflict
from common.settings.section import Section
from common.settings.section import kebab as _kebab

Scalar = str | int | float | bool

BASE = "base"
"""The key by which a recipe names the one that it changes."""


class Sites(Section):
    """Which sites take part in a round, and how long the server waits for them."""

    expected: int = Field(
        0, ge=0, description="sites to wait for before round 1; 0: as many as are connected"
    )
    per_round: int = Field(0, ge=0, description="sites drawn for a round (seeded); 0: all")
    minimum: int = Field(1, ge=1, description="usable replies without which a round does not count")
    deadline_seconds: float = Field(
        900.0, gt=0, description="a site that has not answered by then is left out"
    )
    wait_seconds: float = Field(
        120.0, gt=0, description="how long to wait for the expected sites at the start"
    )
    pool: bool = Field(
        False, description="simulation only: join all shards into one site (centralised training)"
    )


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

    merge: Literal[
        "mean", "fedcc-kmeans", "fedcc-maximin", "matched", "matched-median", "matched-geometric", "lloyd"
    ] = Field("lloyd", description="the two robust rules give every site one vote: median, geometric median")
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


class Aggregation(Section):
    """How the sites' heads become one."""

    weights: Literal["images", "batches", "uniform"] = Field(
        "images", description="what a site's share of the mean goes by"
    )
    keep_least_moved: bool = Field(
        False, description="the site whose centroids moved least keeps its own model (FUSS 'custom')"
    )
    rule: Literal["mean", "median", "trimmed-mean", "krum", "multi-krum"] = Field(
        "mean", description="all but the mean stand some hostile sites"
    )
    trim: float = Field(0.2, ge=0, lt=0.5, description="trimmed-mean: fraction cut at either end")
    malicious: int = Field(0, ge=0, description="krum: how many sites may be hostile")
    keep: int = Field(0, ge=0, description="multi-krum: sites to average; 0: all but the hostile ones")
    optimizer: Literal["none", "momentum", "adam", "yogi", "adagrad"] = Field(
        "none", description="server optimiser on the averaged update (FedAvgM, FedAdam, FedYogi, FedAdagrad)"
    )
    lr: float = Field(1.0, gt=0, description="server learning rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="first moment of the server optimiser")
    second_moment: float = Field(0.99, ge=0, lt=1, description="adam, yogi: second moment")
    tau: float = Field(1e-3, gt=0, description="adam, yogi, adagrad: degree of adaptivity")


class Wire(Section):
    """What travels."""

    dtype: Literal["float32", "float16"] = Field("float32", description="float16 halves the payload")


class Eval(Section):
    """How a run is scored. Scoring never touches training."""

    where: Literal["server", "sites", "none"] = Field("server", description="who holds the labelled shard")
    shard: str = Field(
        "",
        description="labelled manifests, relative to the shards folder, separated by commas; empty: no scores",
    )
    classes: str = Field(
        "",
        description="class table, by name or JSON file, of shards without one; empty: that of the shards folder",
    )
    every: int = Field(1, ge=0, description="score every so many rounds, and the last; 0: only the last")
    last: int = Field(
        5, ge=1, description="a report tells mean and deviation of this many last scored rounds"
    )
    matching: Literal["hungarian", "many-to-one"] = Field("hungarian", description="clusters to classes")
    flip: bool = Field(False, description="average the code with that of the mirrored image")
    crf: bool = Field(False, description="refine with a dense CRF")


class Checkpoint(Section):
    """What stays on disk."""

    keep: int = Field(0, ge=0, description="how many rounds to keep; 0: all")


class Simulation(Section):
    """Where a simulated site finds its data; a real site says so itself (`client/site.py`)."""

    shards: str = Field("", description="folder made by `python -m partitions`")
    data_root: str = Field("", description="folder that the manifests' paths refer to; empty: as recorded")
    cache: str = Field("", description="folder of the feature caches; empty: inside the shards folder")
    threads: int = Field(1, ge=1, description="torch threads per simulated site")


class RunConfig(Section):
    """All settings of a run."""

    task: Literal["unsupervised", "supervised", "adaptation"] = Field(
        "unsupervised",
        description="a head on a frozen model without labels; a whole network with the sites' labels; or one that was "
        "trained on labels elsewhere and adapts without",
    )
    preset: Literal["default", "fuss-ref", "fuss-clean"] = Field(
        "default",
        description="where settings start from: what we recommend, FUSS as published, or without its faults",
    )
    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names the run directory")
    rounds: int = Field(10, ge=0, description="0: pretraining alone (task adaptation)")
    seed: int = Field(0, ge=0, description="of everything that is drawn")
    deterministic: bool = Field(
        False, description="CUDA: the same bits in every run, by slower operations; a CPU needs no setting"
    )
    run_dir: str = Field("", description="folder of the results; empty: runs/NAME-seedSEED")
    resume: str = Field("", description="a checkpoint to go on from")
    sites: Sites = Sites()
    model: Model = Model()
    cache: Cache = Cache()
    local: Local = Local()
    loss: Loss = Loss()
    centroids: Centroids = Centroids()
    aggregation: Aggregation = Aggregation()
    network: Network = Network()
    transforms: Transforms = Transforms()
    sgd: Sgd = Sgd()
    reduction: Reduction = Reduction()
    source: Source = Source()
    style: Style = Style()
    teacher: Teacher = Teacher()
    clusters: Clusters = Clusters()
    privacy: Privacy = Privacy()
    wire: Wire = Wire()
    eval: Eval = Eval()
    checkpoint: Checkpoint = Checkpoint()
    simulation: Simulation = Simulation()

    @model_validator(mode="after")
    def _combinations(self) -> RunConfig:
        if self.loss.augmentation_weight and not self.cache.views:
            raise ValueError(
                f"loss.augmentation-weight is {self.loss.augmentation_weight:g} but cache.views is 0; "
                "set cache.views to 1 or more, so that there are augmented views to agree with"
            )
        if self.sites.per_round and self.sites.minimum > self.sites.per_round:
            raise ValueError(
                f"sites.minimum is {self.sites.minimum} but sites.per-round is {self.sites.per_round}; "
                "a round could never count, so lower sites.minimum or raise sites.per-round"
            )
        if conflict := privacy_conflict(self):
            raise ValueError(conflict)
        if self.rounds == 0 and self.task != "adaptation":
            raise ValueError("rounds is 0, which only task 'adaptation' knows (pretraining alone); raise it")
        if self.network.site_statistics and self.task != "adaptation":
            raise ValueError(
                f"network.site-statistics is {self.network.site_statistics:g}, for a network that was pretrained "
                f"elsewhere, but task is '{self.task}'; set it to 0, or the task to 'adaptation'"
            )
        if self.network.final_statistics and (conflict := self._final_statistics_conflict()):
            raise ValueError(f"network.final-statistics is true but {conflict}")
        if conflict := sharing_conflict(self) or unsupervised_conflict(self):
            raise ValueError(conflict)
        if self.source.styles and (conflict := self._styles_conflict()):
            raise ValueError(f"source.styles names styles to pretrain in but {conflict}; leave it empty")
        return self

    def _final_statistics_conflict(self) -> str | None:
        if self.task != "supervised":
            return f"task is '{self.task}'; set it to false, or the task to 'supervised'"
        if self.rounds < 2:
            return f"rounds is {self.rounds} and the last one takes no step; set it to 2 or more"
        if self.network.batchnorm != "shared" or self.centroids.share == "none":
            return "sites keep their statistics to themselves; set it to false, or let them share all"
        if self.network.freeze == "batchnorm":
            return "network.freeze is 'batchnorm', which keeps the statistics received; set one of the two"
        return None

    def _styles_conflict(self) -> str | None:
        if self.task != "adaptation":
            return f"task '{self.task}' does not pretrain"
        if self.source.checkpoint:
            return "source.checkpoint names a model that is pretrained already"
        if self.style.transfer == "none":
            return "style.transfer is 'none', which leaves the source as it is"
        return None

    def measures(self, number: int) -> bool:
        """Whether round ``number`` takes no step and measures batch norm statistics, at all sites.

        That is the first round of an adaptation and the last one of supervised training, where they are asked for.
        """
        if self.task == "adaptation":
            return number == 1 and self.network.site_statistics > 0
        return number == self.rounds and self.network.final_statistics

    def to_flat(self) -> dict[str, Scalar]:
        """Return the settings as Flower wants them: dotted kebab-case keys, scalar values."""
        return flatten(self.model_dump(by_alias=True))

    def to_json(self) -> str:
        """Return the resolved settings as readable JSON."""
        return json.dumps(self.model_dump(by_alias=True), indent=2)

    def to_toml(self) -> str:
        """Return the settings as dotted TOML keys, which `read_recipe` and ``flwr run`` take."""
        return "".join(f"{key} = {json.dumps(value)}\n" for key, value in self.to_flat().items())

    def to_wire(self) -> str:
        """Return what differs from the preset, as short JSON: settings travel with every message."""
        preset = load_config({"preset": self.preset}).to_flat()
        return json.dumps(
            {key: value for key, value in self.to_flat().items() if value != preset[key] or key == "preset"},
            separators=(",", ":"),
        )

    @classmethod
    def from_wire(cls, text: str) -> RunConfig:
        """Read what `to_wire` wrote; raises `UserError` for settings that this version does not know."""
        try:
            given = json.loads(text)
        except json.JSONDecodeError:
            given = None
        if not isinstance(given, dict):
            raise UserError(
                "The settings in the server's message are not JSON; run the same release on both sides."
            )
        return load_config(given)

    @classmethod
    def from_json(cls, text: str) -> RunConfig:
        """Read what `to_json` wrote."""
        return cls.model_validate_json(text)


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn ``{"local": {"steps": 3}}`` into ``{"local.steps": 3}``."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Turn ``{"local.steps": 3}`` into ``{"local": {"steps": 3}}``."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *groups, leaf = key.split(".")
        target = nested
        for group in groups:
            target = target.setdefault(group, {})
        target[leaf] = value
    return nested


def default_flat() -> dict[str, Scalar]:
    """Return what ``pyproject.toml`` has to list: every key, ``"preset"`` where a preset may decide."""
    governed = {key for preset in PRESETS.values() for key in preset}
    return {key: FROM_PRESET if key in governed else value for key, value in RunConfig().to_flat().items()}


def load_config(*layers: Mapping[str, Any]) -> RunConfig:
    """Merge layers of settings (later ones win) over the chosen preset, and check them.

    Each layer may be flat or nested. A value of ``"preset"`` means: as the preset says. Raises
    `UserError` with the key, the value given and what was expected.
    """
    given: dict[str, Any] = {}
    for layer in layers:
        given |= flatten(layer)
    known = RunConfig().to_flat()
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else "see common/settings/schema.py for the list."
            raise UserError(f"Unknown settings key '{key}': {hint}")
    given = {key: value for key, value in given.items() if value != FROM_PRESET}
    preset = given.get("preset", "default")
    if preset not in PRESETS:
        raise UserError(f"Setting 'preset' is {preset!r}; expected one of {', '.join(PRESETS)}.")
    settings = unflatten(PRESETS[preset] | given)
    try:
        return RunConfig.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(_kebab(str(part)) for part in first["loc"])
        what = first["msg"].removeprefix("Value error, ")
        if not where:
            raise UserError(f"The settings do not fit together: {what}.") from None
        raise UserError(f"Setting '{where}' is {first['input']!r}: {what}.") from None


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Read a recipe (TOML) as flat settings; raises `UserError` where it is missing or broken.

    A recipe may be a few lines on top of another: ``base = "NAME"`` takes all settings of NAME.toml in the
    same folder, and the recipe's own win. A base may have a base itself.
    """
    file = Path(path)
    settings = _read_toml(file)
    read = [file.stem]
    while BASE in settings:
        name = settings.pop(BASE)
        if not isinstance(name, str) or not name or Path(name).name != name:
            raise UserError(f"Recipe {file} has the base {name!r}; expected the name of a recipe beside it.")
        if name in read:
            raise UserError(
                f"Recipe {file} is its own base ({' on '.join([*read, name])}); break the circle."
            )
        read.append(name)
        settings = _read_toml(file.with_name(f"{name}.toml")) | settings
    return settings


def _read_toml(file: Path) -> dict[str, Any]:
    if not file.is_file():
        known = ", ".join(sorted(p.stem for p in file.parent.glob("*.toml"))) if file.parent.is_dir() else ""
        raise UserError(
            f"Recipe {file} does not exist" + (f"; {file.parent} holds: {known}." if known else ".")
        )
    try:
        return flatten(tomllib.loads(file.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"Recipe {file} is not valid TOML: {error}.") from None


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """Read ``key=value`` words as TOML scalars; a bare word counts as a string."""
    settings: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key.strip():
            raise UserError(
                f"Setting {assignment!r} is not of the form key=value, for example local.steps=12."
            )
        try:
            settings[key.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            settings[key.strip()] = value.strip()
    return settings
