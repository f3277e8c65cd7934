"""Settings section of task `student`: its first stage, and which of that stage's pixels it learns from."""

from __future__ import annotations

from pydantic import Field

from common.settings.section import Section


class Student(Section):
    """A whole network that learns the clusters of a first stage (task `unsupervised`) as if they were labels."""

    keep: float = Field(
        0.8, gt=0, le=1, description="most certain share of a site's pixels of each cluster that are learned"
    )
    balance: float = Field(
        0.25, ge=0, le=1, description="a pixel weighs by its cluster's frequency to the power of minus this"
    )
    first_rounds: int = Field(40, ge=1, description="rounds of the first stage")
    first_steps: int = Field(12, ge=0, description="local.steps of the first stage")
    first_batch: int = Field(8, ge=1, description="local.batch of the first stage")
