"""Requests for the sites' styles, and the style clusters that follow from them.

A style is asked for once per site, before the first round or when a site comes late. It is the only thing
about a site's images that leaves it.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np

from common import wire
from common.data.manifest import read_partition
from common.errors import UserError
from common.settings.network import Style
from common.settings.schema import RunConfig
from common.styles.bank import BANK_FILE, StyleBank
from common.styles.clusters import CLUSTERS_FILE, StyleClusters, cluster_styles, purity
from common.styles.style import check_style, style_shape
from common.styles.style import style_kind as style_kind
from common.system.atomic import atomic_write_text
from server.transport.reply_checks import Ask, ReplySchema, Sender

log = logging.getLogger(__name__)

# Means and deviations of CIELAB stay far within.
MOST_OF_LAB = 256.0


def wants_styles(config: RunConfig) -> bool:
    """Say whether a run asks the sites for their styles: for its source images, or for clusters."""
    pretrains = config.facts.pretrains and not (config.source.checkpoint or config.source.styles)
    return (pretrains and config.style.transfer != "none") or config.clusters.layers != "none"


def expect_style(style: Style) -> ReplySchema:
    """Return how a site's answer has to look."""
    kind = style_kind(style)

    def fault(update: wire.Update, sender: Sender) -> str | None:
        if update.facts.get("images") != sender.images:
            return (
                f"its number of images is {update.facts.get('images')!r}, its greeting said {sender.images}"
            )
        try:
            checked = check_style(update.groups["style"]["style"], kind).astype(np.float64)
        except ValueError as error:
            return str(error).rstrip(".")
        return _impossible(checked, kind)

    return ReplySchema({"style": {"style": style_shape(kind)}}, plausible=fault)


def _impossible(style: np.ndarray, kind: Style) -> str | None:
    """Return why no image has this style, or None: light is never negative, so its mean outweighs every frequency."""
    if kind.transfer == "lab":
        return "'style/style' lies outside of all colors" if np.abs(style).max() > MOST_OF_LAB else None
    middle = style[:, style.shape[1] // 2, style.shape[2] // 2]
    if (
        style > middle[:, None, None] * (1 + 1e-4)
    ).any() or middle.max() > 255.001 * kind.height * kind.width:
        return "'style/style' holds amplitudes that no image has"
    if not np.allclose(style, style[:, ::-1, ::-1], rtol=1e-3):
        return "'style/style' is not symmetric, as amplitudes are"
    return None


def ask_styles(ask: Ask, names: list[str], config: RunConfig) -> dict[str, np.ndarray]:
    """Return the styles of named sites, by name; one that does not answer, or with what is no style, is left out."""
    kind = style_kind(config.style)
    styles: dict[str, np.ndarray] = {}
    # in order of names, as replies come in any: two runs log the same
    for name, update in sorted(ask(names, wire.STYLE, expect_style(config.style)).items()):
        try:
            styles[name] = check_style(update.groups["style"]["style"], kind)
        # one odd site must not keep all others from clustering
        except ValueError as error:
            log.warning("the style of site %s is left out: %s", name, error)
    return styles


def gather_styles(ask: Ask, names: list[str], config: RunConfig, run_dir: Path) -> StyleBank:
    """Ask all sites for their styles and keep them in the run directory."""
    styles = ask_styles(ask, names, config)
    if not styles:
        raise UserError(
            "No site sent its style; see log.txt for the reasons, mend the sites and start again."
        )
    bank = StyleBank.of(style_kind(config.style), styles)
    bank.save(run_dir / BANK_FILE)
    log.info("styles of %d sites: %s", len(styles), run_dir / BANK_FILE)
    return bank


def group_sites(bank: StyleBank, config: RunConfig, run_dir: Path) -> StyleClusters:
    """Find sites of like style, write down who is with whom, and say how well that fits known domains."""
    grouping = cluster_styles(bank.styles, config.clusters, config.seed)
    record = grouping.record()
    domains = known_domains(config)
    if set(grouping.assignment) <= set(domains):  # purity over some of the sites would be no purity
        record.purity = purity(grouping.assignment, domains)
    written = json.dumps(record.model_dump(mode="json", exclude_unset=True), indent=2)
    atomic_write_text(run_dir / CLUSTERS_FILE, written + "\n")
    for cluster, names in enumerate(grouping.members()):
        log.info("style cluster %d of %d: %s", cluster, grouping.k, ", ".join(names))
    if grouping.note:
        log.info(grouping.note)
    if record.purity is not None:
        log.info("purity of the clusters against known domains: %.2f", record.purity)
    return grouping


def known_domains(config: RunConfig) -> dict[str, str]:
    """Return the main domain of each site where the shards folder knows it (simulation)."""
    folder = Path(config.simulation.shards) if config.simulation.shards else None
    if folder is None or not (folder / "partition.json").is_file():
        return {}
    found = read_partition(folder).domains
    return {site: max(sorted(counts), key=lambda d: counts[d]) for site, counts in found.items() if counts}


def place_newcomers(grouping: StyleClusters, ask: Ask, names: list[str], config: RunConfig) -> StyleClusters:
    """Put sites that no cluster knows into the nearest one, by their style."""
    strangers = [name for name in names if name not in grouping.assignment]
    if not strangers:
        return grouping
    placed = {name: grouping.nearest(style) for name, style in ask_styles(ask, strangers, config).items()}
    for name, cluster in placed.items():
        log.info("site %s joins cluster %d", name, cluster)
    return replace(grouping, assignment=grouping.assignment | placed)
