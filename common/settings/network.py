"""Settings sections of the tasks that train a whole network: `supervised` and `adaptation`.

Defaults are those of the published driving-scene works where they state one; `RunConfig`
(``common/settings/schema.py``) holds these sections beside those that all tasks share.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from common.settings.section import Section


def numbers(value: str) -> tuple[int, ...]:
    """Read ``"12,24,36"``."""
    return tuple(int(part) for part in value.split(","))


class Network(Section):
    """A whole segmentation network on MobileNetV2."""

    architecture: str = Field("deeplab", description="see `list networks`")
    weights: str = Field(
        "pretrained",
        description="to start from: 'pretrained' (the backbone), 'random', or safetensors files or folders of runs "
        "separated by commas, later ones over earlier ones",
    )
    output_stride: Literal[8, 16, 32] = Field(32, description="pixels per cell of the deepest features")
    rates: str = Field("12,24,36", description="dilation of the three atrous convolutions of ASPP")
    dropout: float = Field(0.5, ge=0, lt=1, description="before ASPP's output")
    normalize: Literal["imagenet", "half", "none"] = Field(
        "imagenet", description="mean and std of the input; half: 0.5 and 0.5; none: pixels stay in 0..1"
    )
    batchnorm: Literal["shared", "local-statistics", "local"] = Field(
        "shared",
        description="what a site keeps of its batch norms: nothing, running statistics (SiloBN), "
        "or scale and shift as well (FedBN)",
    )
    freeze: Literal["none", "encoder", "decoder", "batchnorm"] = Field(
        "none", description="what stays as received; batchnorm: scale, shift and statistics"
    )
    site_statistics: float = Field(
        0.0,
        ge=0,
        le=1,
        description="adaptation: the first round takes no step but moves the running statistics this part of the "
        "way to those of the site's own images; 0: off",
    )
    final_statistics: bool = Field(
        False,
        description="supervised: the last round takes no step; all sites measure the running statistics of the "
        "final network, and the server pools them",
    )

    @field_validator("rates")
    @classmethod
    def _rates(cls, value: str) -> str:
        parts = [part.strip() for part in value.split(",")]
        if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
            raise ValueError("expected three dilations separated by commas, for example '12,24,36'")
        return ",".join(parts)


class Transforms(Section):
    """How an image and its label are changed together before a training step, in this order."""

    resize_height: int = Field(0, ge=0, description="resize first to this height; 0: as on disk")
    resize_width: int = Field(0, ge=0, description="resize first to this width; 0: as on disk")
    scale_min: float = Field(1.0, gt=0, description="random scale, lower end")
    scale_max: float = Field(1.0, gt=0, description="random scale, upper end")
    rotation: float = Field(0.0, ge=0, le=180, description="largest random rotation in degrees; 0: off")
    crop: Literal["none", "random", "resized"] = Field(
        "random", description="random: pad and cut; resized: cut a share of the area and resize it"
    )
    height: int = Field(512, ge=32, description="height after the crop, in pixels")
    width: int = Field(928, ge=32, description="width after the crop, in pixels")
    area_min: float = Field(0.5, gt=0, le=1, description="resized crop: least share of the area")
    area_max: float = Field(1.0, gt=0, le=1, description="resized crop: largest share of the area")
    flip: float = Field(0.0, ge=0, le=1, description="probability of a mirror image, left and right swapped")
    jitter: float = Field(0.0, ge=0, lt=1, description="brightness, contrast, saturation by up to this share")
    eval_height: int = Field(0, ge=0, description="images are scored at this height; 0: as on disk")
    eval_width: int = Field(0, ge=0, description="images are scored at this width; 0: as on disk")

    @model_validator(mode="after")
    def _ends(self) -> Transforms:
        for name in ("scale", "area"):
            low, high = getattr(self, f"{name}_min"), getattr(self, f"{name}_max")
            if low > high:
                raise ValueError(f"transforms.{name}-min is {low} and {name}-max {high}; expected min <= max")
        for name in ("resize", "eval"):
            if bool(getattr(self, f"{name}_height")) != bool(getattr(self, f"{name}_width")):
                raise ValueError(f"transforms.{name}-height and {name}-width go together; set both or none")
        return self


class Sgd(Section):
    """The optimizer of a whole network, new in every round; ``local.*`` says how long and how wide."""

    algorithm: Literal["sgd", "adam", "adamw"] = Field(
        "sgd", description="adam, adamw: momentum is the first moment's decay, the second's is 0.999"
    )
    lr: float = Field(0.05, gt=0, description="learning rate")
    head_factor: float = Field(1.0, gt=0, description="the decoder's learning rate in multiples of lr")
    momentum: float = Field(0.9, ge=0, lt=1, description="how much of the last step goes on")
    weight_decay: float = Field(0.0, ge=0, description="pull of all parameters to 0")
    schedule: Literal["constant", "poly", "cosine", "linear"] = Field(
        "poly", description="of the learning rate over all steps of a run, not of a round"
    )
    power: float = Field(0.9, gt=0, description="poly: exponent")  # that of DeepLab
    warmup: float = Field(0.0, ge=0, lt=1, description="share of the run in which lr rises from 0")
    mixed_precision: bool = Field(True, description="float16 arithmetic on CUDA; the CPU stays at float32")


class Reduction(Section):
    """How the cross-entropy of pixels becomes one number."""

    kind: Literal["mean", "weighted", "per-class", "inverse-frequency", "hard-pixels"] = Field(
        "mean", description="all but the mean and hard-pixels let rare classes weigh more"
    )
    power: float = Field(0.1, ge=0, le=1, description="inverse-frequency: exponent p of N / n_c")
    weight: float = Field(2.0, gt=0, description="weighted: factor of crucial classes")
    crucial: str = Field(
        "", description="weighted: class names separated by commas; empty: the table's rare ones"
    )
    hard_share: float = Field(0.25, gt=0, le=1, description="hard-pixels: share of largest losses")
    scope: Literal["image", "batch"] = Field("image", description="what counts and means are taken over")
    denominator: Literal["valid", "all"] = Field("valid", description="all: ignored pixels count in N")
    cap: float = Field(0.0, ge=0, description="inverse-frequency: largest factor; 0: none")
    lovasz_weight: float = Field(0.0, ge=0, description="of the Lovász softmax loss (IoU itself), beside it")


class Style(Section):
    """A site's style, and how source images take it on."""

    transfer: Literal["none", "fourier", "lab", "spectra"] = Field(
        "none", description="amplitudes replaced (FDA), statistics in CIELAB, amplitudes interpolated (CFSI)"
    )
    side: int = Field(3, ge=0, description="window side in bins, odd; 0: see half-size and fraction")
    half_size: int = Field(-1, ge=-1, description="window half-size b (side 2b+1); -1: not given")
    fraction: float = Field(0.0, ge=0, le=0.5, description="window half-size as share of the shorter side")
    height: int = Field(512, ge=8, description="all styles are taken at this height in pixels")
    width: int = Field(1024, ge=8, description="all styles are taken at this width in pixels")
    mix: float = Field(1.0, gt=0, le=1, description="spectra: largest share of the site's amplitude")

    @model_validator(mode="after")
    def _one_window(self) -> Style:
        given = [self.side > 0, self.half_size >= 0, self.fraction > 0]
        if sum(given) != 1:
            raise ValueError(
                f"the window is given {sum(given)} times by style.side, half-size and fraction; "
                "give one and leave the others at 0, -1 and 0"
            )
        if self.side and self.side % 2 == 0:
            raise ValueError(f"style.side is {self.side}; expected an odd number of bins")
        if self.half_side * 2 + 1 > min(self.height, self.width):
            raise ValueError(
                f"the style window has side {self.half_side * 2 + 1}, the images {self.height} rows"
            )
        return self

    @property
    def half_side(self) -> int:
        """The window's half-size b, in bins."""
        if self.side:
            return self.side // 2
        return self.half_size if self.half_size >= 0 else int(self.fraction * min(self.height, self.width))


class Teacher(Section):
    """Self-training: who says what a pixel is, and which pixels are believed."""

    update: Literal["never", "rounds", "mean", "student"] = Field(
        "never",
        description="never: the pretrained model for ever; rounds: a copy of the shared model every so many "
        "rounds; mean: running mean of those; student: the network in training itself",
    )
    every: int = Field(1, ge=1, description="rounds between two updates")
    start: int = Field(0, ge=0, description="mean: rounds before the first model that counts")
    view: Literal["same", "plain"] = Field(
        "same",
        description="plain: the teacher sees a cut before its colors are jittered, the student after it",
    )
    mirror: bool = Field(False, description="average the teacher's answer with that to the mirrored cut")
    # both bounds are those of FDA (Yang and Soatto, CVPR 2020)
    confidence: float = Field(0.9, ge=0, le=1, description="pixels above it are kept; 1: none")
    fraction: float = Field(0.66, ge=0, lt=1, description="most confident share of each class kept; 0: none")
    denominator: Literal["all", "kept"] = Field("all", description="what the loss is divided by")
    reduce: bool = Field(
        False, description="the kept pixels weigh as reduction says, which else is of labelled images alone"
    )
    weight: float = Field(1.0, ge=0, description="of the pseudo-label loss")
    distill_weight: float = Field(0.0, ge=0, description="of staying close to the pretrained model")
    distill_alpha: float = Field(0.5, gt=0, description="factor on the pretrained model's logits")
    entropy_weight: float = Field(0.0, ge=0, description="of the entropy of the student's predictions")
    max_square_weight: float = Field(
        0.0, ge=0, description="of their squared probabilities, so that rare classes are heard (MaxSquare)"
    )


class Clusters(Section):
    """Sites of like style, with layers of their own."""

    layers: Literal["none", "bn", "encoder", "decoder", "all", "bn+encoder", "bn+decoder", "all-stats"] = (
        Field("none", description="what each cluster has for itself; all-stats: parameters, not statistics")
    )
    smallest: int = Field(2, ge=2, description="fewest clusters tried")
    largest: int = Field(20, ge=2, description="most clusters tried, below the number of sites")
    exact: int = Field(0, ge=0, description="this many clusters, whatever the silhouette says; 0: search")
    bootstrap_rounds: int = Field(0, ge=0, description="first rounds without clusters")

    @model_validator(mode="after")
    def _range(self) -> Clusters:
        if self.smallest > self.largest:
            raise ValueError(
                f"clusters.smallest is {self.smallest} and largest {self.largest}; expected smallest <= largest"
            )
        return self


class Source(Section):
    """Adaptation: the labelled images at the server, and the model that they give."""

    shard: str = Field("", description="labelled manifest, relative to the shards folder")
    data_root: str = Field("", description="folder of its paths; empty: as for the sites")
    checkpoint: str = Field("", description="a pretrained model to start from; empty: pretrain first")
    styles: str = Field("", description="styles.safetensors of an earlier run; empty: the sites are asked")
    steps: int = Field(0, ge=0, description="optimizer steps of pretraining; 0: count epochs")
    epochs: int = Field(10, ge=1, description="passes over the source, where steps is 0")
    batch: int = Field(16, ge=1, description="images per step")
    lr: float = Field(5e-3, gt=0, description="learning rate of pretraining")
    plain: float = Field(0.0, ge=0, le=1, description="share of source images left in their own style")


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
