"""Settings of a run: names, meanings, bounds and defaults of all fields.

Flower hands over flat scalars with dotted keys (``local.steps = 12``); recipes are TOML files with the
same keys. `common.settings.load` turns them into a frozen `RunConfig`. Defaults stand in the sections and
nowhere else: those that a preset governs are the values of preset ``default``. What a key means and which values
it takes is read from the fields (`explanations`), so that it is what the program checks. Secrets never live in
settings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo

from common.settings.label_free import Codes, Refine, Things
from common.settings.network import (
    Clusters,
    Network,
    Reduction,
    Sgd,
    Source,
    Student,
    Style,
    Teacher,
    Transforms,
)
from common.settings.objectives import Loss
from common.settings.privacy import Privacy
from common.settings.section import Scalar, Section, flatten, kebab
from common.settings.tasks import TASK_FACTS, TaskFacts
from common.settings.unsupervised import Cache, Centroids, Local, Model


class Sites(Section):
    """Which sites take part in a round, and how long the server waits for them."""

    expected: int = Field(
        0, ge=0, description="sites to wait for before round 1; 0: as many as are connected"
    )
    per_round: int = Field(0, ge=0, description="sites drawn for a round (seeded); 0: all")
    minimum: int = Field(1, ge=1, description="usable replies without which a round does not count")
    largest_share: float = Field(0.9, gt=0, le=1, description="of all images, for a site among three or more")
    deadline_seconds: float = Field(
        900.0, gt=0, description="a site that has not answered by then is left out"
    )
    wait_seconds: float = Field(120.0, gt=0, description="how long to wait for the expected sites at first")
    pool: bool = Field(
        False, description="simulation only: join all shards into one site (centralised training)"
    )


class Aggregation(Section):
    """How the sites' heads become one."""

    weights: Literal["images", "batches", "uniform"] = Field(
        "images", description="what a site's share of the mean goes by"
    )
    keep_least_moved: bool = Field(
        False, description="the site whose centroids moved least keeps its own model (FUSS 'custom')"
    )
    rule: str = Field("mean", description="all but the mean stand some hostile sites")
    trim: float = Field(0.2, ge=0, lt=0.5, description="trimmed-mean: fraction cut at either end")
    malicious: int = Field(0, ge=0, description="krum: how many sites may be hostile")
    keep: int = Field(0, ge=0, description="multi-krum: sites to average; 0: all but the hostile ones")
    optimizer: str = Field(
        "none", description="server optimizer on the averaged update (FedAvgM, FedAdam, FedYogi, FedAdagrad)"
    )
    # moments and tau as in Reddi et al., "Adaptive Federated Optimization" (ICLR 2021)
    lr: float = Field(1.0, gt=0, description="server learning rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="first moment of the server optimizer")
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
    published: bool = Field(
        False,
        description="score by the published conventions as well: predicted but absent classes count 0, clusters "
        "without a class are dropped",
    )
    flip: bool = Field(False, description="average the code with that of the mirrored image")
    crf: bool = Field(False, description="refine with a dense CRF")


class Checkpoints(Section):
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

    task: Literal["unsupervised", "supervised", "adaptation", "student"] = Field(
        "unsupervised",
        description="a head on a frozen model without labels; a whole network with the sites' labels; one that was "
        "trained on labels elsewhere and adapts without; or one that learns what a frozen model found",
    )
    preset: Literal["default", "label-free", "fuss-ref", "fuss-clean"] = Field(
        "default",
        description="where settings start from: a small head in closed form, masks from a strong backbone, FUSS as "
        "published, or FUSS without its faults",
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
    loss: Loss = Field(default_factory=Loss)  # made late, since objectives import this module
    things: Things = Things()
    codes: Codes = Codes()
    centroids: Centroids = Centroids()
    refine: Refine = Refine()
    aggregation: Aggregation = Aggregation()
    network: Network = Network()
    transforms: Transforms = Transforms()
    sgd: Sgd = Sgd()
    reduction: Reduction = Reduction()
    source: Source = Source()
    style: Style = Style()
    teacher: Teacher = Teacher()
    clusters: Clusters = Clusters()
    student: Student = Student()
    privacy: Privacy = Privacy()
    wire: Wire = Wire()
    eval: Eval = Eval()
    checkpoint: Checkpoints = Checkpoints()
    simulation: Simulation = Simulation()

    @property
    def facts(self) -> TaskFacts:
        """What is true of the run's task."""
        return TASK_FACTS[self.task]

    @property
    def fitted_clusters(self) -> int:
        """How many clusters k-means ends with: of patches, or of the kinds of images beside a background."""
        return self.model.clusters - (self.things.each_picture == "one")

    @property
    def centerings(self) -> tuple[bool, ...]:
        """Whether codes are centered in their image, for each family of starts that is fitted."""
        if self.things.each_picture == "one":
            return (False,)  # images that differ in kind differ in their means
        return {"none": (False,), "image": (True,), "auto": (False, True)}[self.codes.center]

    def measures(self, number: int) -> bool:
        """Whether round ``number`` takes no step and measures batch norm statistics, at all sites.

        That is the first round of an adaptation and the last one of supervised training, where they are asked for.
        """
        first, last = number == 1, number == self.rounds
        return (first and self.network.site_statistics > 0) or (last and self.network.final_statistics)

    def to_flat(self) -> dict[str, Scalar]:
        """Return the settings as Flower wants them: dotted kebab-case keys, scalar values."""
        return flatten(self.model_dump(by_alias=True))

    def to_json(self) -> str:
        """Return the resolved settings as readable JSON."""
        return json.dumps(self.model_dump(by_alias=True), indent=2)

    def to_toml(self) -> str:
        """Return the settings as dotted TOML keys, which `read_recipe` and ``flwr run`` take."""
        return "".join(f"{key} = {json.dumps(value)}\n" for key, value in self.to_flat().items())


# how a bound is written for users
SIGNS = {Ge: ">=", Gt: ">", Le: "<=", Lt: "<"}


def explanations(model: type[BaseModel] = RunConfig, prefix: str = "") -> dict[str, str]:
    """Return a line for each dotted key: what it means, then its values or bounds; empty if neither is said."""
    found: dict[str, str] = {}
    for name, field in model.model_fields.items():
        key = prefix + kebab(name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= explanations(field.annotation, f"{key}.")
        else:
            allowed = values(field)
            found[key] = " ".join(
                part for part in (field.description or "", f"({allowed})" if allowed else "") if part
            )
    if issubclass(model, Loss):
        for name, section in model.sections().items():
            found |= explanations(section, f"{prefix}{name}.")
    return found


def values(field: FieldInfo) -> str:
    """Return which values a field takes: its choices, or its bounds; empty for any of its type."""
    if get_origin(field.annotation) is Literal:
        return ", ".join(json.dumps(choice) for choice in get_args(field.annotation))
    return ", ".join(_bound(limit) for limit in field.metadata if type(limit) in SIGNS)


def _bound(limit: Any) -> str:
    sign = SIGNS[type(limit)]
    (value,) = (getattr(limit, name) for name in ("ge", "gt", "le", "lt") if hasattr(limit, name))
    return f"{sign} {value:g}"


def explained_toml(config: RunConfig, names: Mapping[str, str] | None = None) -> str:
    """Return the settings as TOML, each below a comment that says what it means.

    ``names`` says by key, in lines, which registered names a value may be.
    """
    meaning = explanations()
    lines = []
    for key, value in config.to_flat().items():
        if meaning[key]:
            lines.append(f"# {meaning[key]}")
        lines += [f"#   {line}" for line in (names or {}).get(key, "").splitlines()]
        lines.append(f"{key} = {json.dumps(value)}\n")
    return "\n".join(lines)
