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

from common.settings.federation import Aggregation, Checkpoints, Eval, Simulation, Sites, Wire
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

    @property
    def network_stays(self) -> bool:
        """Whether each site trains a whole network for itself, which stays on its disk."""
        return not self.facts.frozen_backbone and self.centroids.share == "none"

    def scores(self, number: int) -> bool:
        """Whether round ``number`` is scored: the last one, and every so many."""
        return number == self.rounds or (self.eval.every > 0 and number % self.eval.every == 0)

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
