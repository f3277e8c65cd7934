"""Settings sections of any federation: sites, merging, the wire, scores, files, and simulation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from common.settings.section import Section


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
    differences: Literal["none", "float16", "int8"] = Field(
        "none",
        description="a network's weights travel as changes to what the site holds, rounded to this; what rounding "
        "leaves out is added to the next change",
    )


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
    readers: int = Field(
        0,
        ge=0,
        description="processes that decode and change a network's images; 0: as many as cores where there is a GPU, "
        "else a thread",
    )
    decoded: float = Field(
        2.0, ge=0, description="GB of decoded images that stay in the cache over rounds; 0: none"
    )
