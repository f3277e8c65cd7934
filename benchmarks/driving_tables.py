"""Which runs make the tables of the driving-scene source, and what did the source measure?

A row names its recipe. A recipe that stands in several tables is one run: the source's own figures of the
centralised run with random crops come back in its second table. Published figures are mIoU in %, single
runs, as the slides give them ("–": not legible there). What the tables on CamVid show nobody has published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

SITES = 24
"""Sites of the reduced IDDA."""
SITE_EPOCHS = 4800
"""Epochs that all sites of a supervised run take together: 200 passes over every image."""

IDDA: Mapping[str, str] = {"TR": "train_eval", "TS1": "ts1", "TS2": "ts2"}
GTA5_AND_IDDA: Mapping[str, str] = {"GTA5": "site-0", **IDDA}


@dataclass(frozen=True)
class Row:
    """One line: the recipe, what tells it from its neighbours, and the published figures, one per column."""

    recipe: str
    says: str
    published: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """Rows that are scored alike.

    columns: scored set by the name of its column. start: the recipe whose model the rows with rounds of
    adaptation go on from, seed by seed. site_epochs: what C x E x R has to be in every row; 0: anything.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    columns: Mapping[str, str] = field(default_factory=lambda: IDDA)
    start: str = ""
    site_epochs: int = 0

    @property
    def recipes(self) -> list[str]:
        """Return the recipes in the order in which they have to run."""
        first = [self.start] if self.start else []
        return first + [row.recipe for row in self.rows if row.recipe != self.start]


TRANSFORMS = Part(
    "transforms",
    "IDDA, all images in one place",
    (
        Row("idda-transform-none", "none", ("68.49", "57.93", "48.17")),
        Row("idda-transform-crop", "random crop", ("64.80", "60.10", "49.61")),
        Row("idda-transform-normalize", "ImageNet's mean and deviation", ("67.63", "57.73", "47.71")),
        Row("idda-transform-rotation", "random rotation", ("67.24", "60.37", "49.54")),
        Row("idda-transform-flip", "random mirror image", ("68.06", "59.11", "48.80")),
        Row("idda-transform-jitter", "colour jitter", ("68.34", "57.54", "47.86")),
    ),
    site_epochs=SITE_EPOCHS,
)

GRID = Part(
    "grid",
    "IDDA, sites with labels: sites a round, epochs, rounds",
    (
        Row("idda-transform-crop", "server, 200 epochs", ("64.80", "60.10", "49.61")),
        Row("idda-grid-c2-e1-r2400", "2, 1, 2400", ("61.68", "57.81", "47.36")),
        Row("idda-grid-c2-e3-r800", "2, 3, 800", ("62.12", "57.85", "47.24")),
        Row("idda-grid-c2-e6-r400", "2, 6, 400", ("61.84", "57.94", "46.73")),
        Row("idda-grid-c2-e10-r240", "2, 10, 240", ("62.14", "57.86", "48.98")),
        Row("idda-grid-c2-e15-r160", "2, 15, 160", ("60.93", "57.61", "46.83")),
        Row("idda-grid-c2-e24-r100", "2, 24, 100", ("60.35", "56.84", "46.28")),
        Row("idda-grid-c4-e1-r1200", "4, 1, 1200", ("60.02", "55.92", "45.88")),
        Row("idda-grid-c4-e3-r400", "4, 3, 400", ("60.85", "56.86", "46.24")),
        Row("idda-grid-c4-e6-r200", "4, 6, 200", ("61.24", "57.73", "47.85")),
        Row("idda-grid-c4-e10-r120", "4, 10, 120", ("59.20", "55.91", "45.64")),
        Row("idda-grid-c8-e1-r600", "8, 1, 600", ("57.32", "52.80", "42.86")),
        Row("idda-grid-c8-e3-r200", "8, 3, 200", ("58.79", "54.69", "46.77")),
        Row("idda-grid-c8-e6-r100", "8, 6, 100", ("58.76", "54.47", "47.13")),
        Row("idda-grid-c16-e1-r300", "16, 1, 300", ("52.93", "49.79", "41.73")),
        Row("idda-grid-c16-e3-r100", "16, 3, 100", ("54.45", "51.73", "45.53")),
        Row("idda-grid-c24-e1-r200", "24, 1, 200", ("49.27", "47.67", "37.86")),
    ),
    site_epochs=SITE_EPOCHS,
)

PRETRAINING = Part(
    "pretraining",
    "GTA5 with labels at the server, no round",
    (
        Row("gta5-pretrain-none", "none", ("75.48", "31.40", "31.86", "25.74")),
        Row("gta5-pretrain-crop", "random crop", ("69.40", "27.42", "27.00", "21.51")),
        Row("gta5-pretrain-normalize", "ImageNet's mean and deviation", ("75.79", "32.32", "31.72", "26.06")),
        Row("gta5-pretrain-rotation", "random rotation", ("73.34", "31.03", "31.62", "25.55")),
        Row("gta5-pretrain-flip", "random mirror image", ("75.06", "31.22", "30.93", "26.33")),
        Row("gta5-pretrain-jitter", "colour jitter", ("75.32", "34.32", "34.32", "27.30")),
        Row("gta5-pretrain-jitter-crop", "jitter and crop", ("67.86", "31.65", "31.05", "25.43")),
        Row("gta5-pretrain-jitter-rotation", "jitter and rotation", ("72.67", "32.13", "32.69", "28.99")),
        Row("gta5-pretrain-jitter-normalize", "jitter and ImageNet's", ("75.71", "33.82", "34.04", "28.52")),
        Row("gta5-pretrain-fda-1", "FDA(1)", ("75.74", "33.06", "33.10", "27.42")),
        Row("gta5-pretrain-fda-3", "FDA(3)", ("75.93", "32.96", "32.45", "26.06")),
        Row("gta5-pretrain-fda-5", "FDA(5)", ("75.81", "33.12", "33.56", "25.61")),
        Row("gta5-pretrain-fda-7", "FDA(7)", ("74.86", "32.04", "32.09", "26.01")),
        Row("gta5-pretrain-fda-25", "FDA(25)", ("75.65", "32.33", "32.41", "25.36")),
        Row("gta5-pretrain-fda-51", "FDA(51)", ("75.23", "30.91", "31.08", "23.27")),
    ),
    GTA5_AND_IDDA,
)

ADAPTATION = Part(
    "adaptation",
    "IDDA, sites without labels: sites a round, epochs, rounds between two teachers",
    (
        Row("gta5-pretrain-jitter", "baseline", ("35.04", "34.33", "28.66")),
        Row("idda-adapt-c2-e1-tinf", "2, 1, never", ("35.52", "35.67", "30.21")),
        Row("idda-adapt-c2-e2-tinf", "2, 2, never", ("36.24", "36.19", "30.36")),
        Row("idda-adapt-c8-e1-tinf", "8, 1, never", ("36.12", "36.52", "30.09")),
        Row("idda-adapt-c8-e2-tinf", "8, 2, never", ("36.02", "36.29", "30.06")),
        Row("idda-adapt-c2-e1-t1", "2, 1, 1", ("35.66", "36.03", "30.58")),
        Row("idda-adapt-c2-e2-t1", "2, 2, 1", ("35.31", "36.11", "30.93")),
        Row("idda-adapt-c8-e1-t1", "8, 1, 1", ("36.08", "36.08", "29.90")),
        Row("idda-adapt-c8-e2-t1", "8, 2, 1", ("35.61", "36.20", "29.91")),
        Row("idda-adapt-c2-e1-t4", "2, 1, 4", ("35.60", "35.87", "30.49")),
        Row("idda-adapt-c8-e1-t4", "8, 1, 4", ("36.02", "36.23", "29.77")),
    ),
    start="gta5-pretrain-jitter",
)

REDUCTIONS = (
    Part(
        "reductions-centralised",
        "Reductions: IDDA, all images in one place",
        (
            Row("idda-transform-crop", "mean", ("65.3", "61.1", "46.3")),
            Row("idda-reduction-centralised-inverse-01", "InvFreq(0.1)", ("65.5", "62.0", "50.6")),
            Row("idda-reduction-centralised-inverse-02", "InvFreq(0.2)", ("65.8", "62.4", "51.5")),
            Row("idda-reduction-centralised-inverse-03", "InvFreq(0.3)", ("65.0", "62.3", "51.6")),
            Row("idda-reduction-centralised-per-class", "mean per class", ("47.1", "45.6", "37.9")),
            Row("idda-reduction-centralised-weighted-2", "wMean(2)", ("64.8", "61.6", "51.9")),
            Row("idda-reduction-centralised-weighted-5", "wMean(5)", ("62.1", "59.8", "48.4")),
            Row("idda-reduction-centralised-weighted-10", "wMean(10)", ("59.2", "56.9", "45.3")),
        ),
        site_epochs=SITE_EPOCHS,
    ),
    Part(
        "reductions-federated",
        "Reductions: IDDA, 2 sites with labels, 3 epochs, 800 rounds",
        (
            Row("idda-grid-c2-e3-r800", "mean", ("61.8", "58.6", "45.5")),
            Row("idda-reduction-federated-inverse-01", "InvFreq(0.1)", ("62.8", "59.6", "47.4")),
            Row("idda-reduction-federated-inverse-02", "InvFreq(0.2)", ("62.9", "60.2", "47.2")),
            Row("idda-reduction-federated-inverse-03", "InvFreq(0.3)", ("62.1", "59.7", "–")),
            Row("idda-reduction-federated-weighted-2", "wMean(2)", ("61.7", "58.5", "47.1")),
        ),
        site_epochs=SITE_EPOCHS,
    ),
    Part(
        "reductions-pretraining",
        "Reductions: GTA5 with jitter, no round",
        (
            Row("gta5-pretrain-jitter", "mean", ("33.53", "33.01", "28.16")),
            Row("idda-reduction-pretrain-inverse-01", "InvFreq(0.1)", ("35.36", "35.61", "29.91")),
            Row("idda-reduction-pretrain-inverse-02", "InvFreq(0.2)", ("35.30", "34.00", "27.64")),
            Row("idda-reduction-pretrain-inverse-03", "InvFreq(0.3)", ("33.70", "33.45", "26.88")),
        ),
    ),
)

CLUSTERS = (
    Part(
        "clusters-supervised",
        "Clusters of style: IDDA, 8 sites with labels, 3 epochs, 200 rounds",
        (
            Row("idda-grid-c8-e3-r200", "one model"),
            Row("idda-clusters-supervised-decoder", "decoders of their own"),
            Row("idda-clusters-supervised-all", "networks of their own"),
        ),
        site_epochs=SITE_EPOCHS,
    ),
    Part(
        "clusters-adapted",
        "Clusters of style: IDDA, 8 sites without labels, 1 epoch",
        (
            Row("idda-adapt-c8-e1-tinf", "one model"),
            Row("idda-clusters-adapted-decoder", "decoders of their own"),
            Row("idda-clusters-adapted-all", "networks of their own"),
        ),
        start="gta5-pretrain-jitter",
    ),
)

CAMVID = (
    Part(
        "camvid-supervised",
        "CamVid, nine drives with labels",
        (
            Row("camvid-supervised-centralised", "all images in one place"),
            Row("camvid-supervised", "nine sites"),
            Row("camvid-supervised-centralised-inverse-frequency", "in one place, inverse frequency"),
            Row("camvid-supervised-inverse-frequency", "nine sites, inverse frequency"),
        ),
        {"dev": "dev"},
    ),
    Part(
        "camvid-adaptation",
        "CamVid, day-time drives with labels at the server, dusk and car parks without",
        (
            Row("camvid-adapt-pretrain", "pretrained, plain"),
            Row("camvid-adapt-pretrain-lab", "pretrained in the sites' CIELAB statistics"),
            Row("camvid-adapt-pretrain-fourier", "pretrained in the sites' amplitudes"),
            Row("camvid-adapt-statistics", "plain, sites' statistics"),
            Row("camvid-adapt-statistics-clusters", "plain, sites' statistics by style"),
            Row("camvid-adapt", "plain, sites' statistics, self-training"),
            Row("camvid-adapt-clusters", "plain, sites' statistics by style, self-training"),
        ),
        {"target": "target", "dev": "dev"},
        start="camvid-adapt-pretrain",
    ),
    Part(
        "camvid-styled",
        "CamVid, the same from the model pretrained in the sites' amplitudes",
        (
            Row("camvid-adapt-styled-statistics", "sites' statistics"),
            Row("camvid-adapt-styled-statistics-clusters", "sites' statistics by style"),
            Row("camvid-adapt-styled", "sites' statistics, self-training"),
            Row("camvid-adapt-styled-clusters", "sites' statistics by style, self-training"),
        ),
        {"target": "target", "dev": "dev"},
        start="camvid-adapt-pretrain-fourier",
    ),
)

TABLES: Mapping[str, tuple[Part, ...]] = {
    "transforms": (TRANSFORMS,),
    "grid": (GRID,),
    "pretraining": (PRETRAINING,),
    "adaptation": (ADAPTATION,),
    "reductions": REDUCTIONS,
    "clusters": CLUSTERS,
    "camvid": CAMVID,
}
