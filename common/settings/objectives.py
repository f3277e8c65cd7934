"""Settings section ``loss``: the objective by name, the extra terms, and one section for each objective.

An objective is one file in ``common/losses``, which registers itself with its facts and its own settings. Their keys
are ``loss.NAME.FIELD``: no list of objectives, or of their keys, stands anywhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from pydantic import ConfigDict, Field, create_model, field_validator, model_validator

from common.errors import UserError
from common.registry import Registry
from common.settings.section import Section

S = TypeVar("S", bound=Section)


@dataclass(frozen=True)
class ObjectiveFacts:
    """What the rest of the program asks about an objective.

    settings: the class of its own section. steps: it takes gradient steps, whose heads the server averages; otherwise
    it is solved in closed form from sums over all sites. single_sites: the server has to see each site's own reply,
    which rules out secure sums and noise. clips: the keys of ``privacy`` that bound what a site sends; the
    first one is the length that noise is measured by. starts: it fits several sets of centroids side by side, joins
    them and treats codes inside their image, so that the settings of that act.
    """

    settings: type[Section] = Section
    steps: bool = True
    single_sites: bool = False
    clips: tuple[str, ...] = ("clip_norm",)
    starts: bool = False


# Classes of `common.losses.base.Objective` or `common.losses.base.ClosedForm`, by name.
OBJECTIVES: Registry[Any, ObjectiveFacts] = Registry("objective", "common.losses")


class Loss(Section):
    """The self-supervised objective of the head, and terms that may be added to any that takes steps."""

    model_config = ConfigDict(extra="allow")  # the sections of the objectives, which `_own_sections` makes

    objective: str = Field(
        "spectral", description="what the head is fitted to; spectral: in closed form, from sums"
    )
    reconstruction_weight: float = Field(0.0, ge=0, description="decoding features from codes; 0: off")
    augmentation_weight: float = Field(0.0, ge=0, description="codes of augmented images agree; 0: off")
    crf_weight: float = Field(0.0, ge=0, description="near patches of like color agree; 0: off")
    # the crf term is STEGO's, with the constants of its published code
    crf_samples: int = Field(1000, ge=2, description="crf: patches compared per step")
    crf_appearance: float = Field(10.0, ge=0, description="crf: weight of the kernel on place and color")
    crf_closeness: float = Field(3.0, ge=0, description="crf: weight of the kernel on place alone")
    crf_alpha: float = Field(0.5, gt=0, description="crf: squared reach in place, with color")
    crf_beta: float = Field(0.15, gt=0, description="crf: squared reach in color")
    crf_gamma: float = Field(0.05, gt=0, description="crf: squared reach in place alone")
    crf_shift: float = Field(0.0, description="crf: affinity at which attraction turns into repulsion")

    @field_validator("objective")
    @classmethod
    def _known(cls, name: str) -> str:
        # when settings are read, not when this module is: registries fill themselves lazily
        try:
            OBJECTIVES.entry(name)
        except UserError as error:
            raise ValueError(str(error).rstrip(".?")) from None
        return name

    @model_validator(mode="before")
    @classmethod
    def _own_sections(cls, given: Any) -> Any:
        """Validate the objectives' sections, with their defaults where nothing was given."""
        if not isinstance(given, dict):
            return given
        sections = cls.sections()
        names = {key: key for key in sections} | {key.replace("-", "_"): key for key in sections}
        own = {names[key]: value for key, value in given.items() if key in names}
        checked = _model_of(tuple(sections.items())).model_validate(own)
        rest = {key: value for key, value in given.items() if key not in names}
        fields = set(cls.model_fields) | {field.alias for field in cls.model_fields.values()}
        if unknown := [key for key in rest if key not in fields]:
            raise ValueError(f"there is no objective or key named '{unknown[0]}'")
        return rest | {key: getattr(checked, key.replace("-", "_")) for key in sections}

    @classmethod
    def sections(cls) -> dict[str, type[Section]]:
        """Return the class of the own section of each objective that has settings, by the objective's name."""
        own = {entry.name: entry.facts.settings for entry in OBJECTIVES.entries()}
        return {name: section for name, section in own.items() if section.model_fields}

    @property
    def facts(self) -> ObjectiveFacts:
        """What is known of the chosen objective."""
        return OBJECTIVES.facts(self.objective)

    def own(self, section: type[S]) -> S:
        """Return the settings of the objective whose section is of this class."""
        return next(value for value in (self.model_extra or {}).values() if isinstance(value, section))


@lru_cache(maxsize=8)
def _model_of(sections: tuple[tuple[str, type[Section]], ...]) -> type[Section]:
    """Return a model whose fields are the sections, so that an error names the whole key."""
    fields: dict[str, Any] = {name.replace("-", "_"): (kind, kind()) for name, kind in sections}
    return create_model("Sections", __base__=Section, **fields)
