"""Checks of a site before it joins: data, device, weights, disk space and connection, one finding each.

A check that depends on a failed one is left out, not guessed. Nothing is written, nothing leaves the site, and no
label is opened unless it was asked for or the task trains on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from client.join.connection import (
    Address,
    check_certificates,
    check_key,
    connect,
    parse_address,
    shake_hands,
)
from client.site import SiteConfig
from common.data.check import check_shard, check_shard_fits
from common.data.classes import load_table
from common.data.manifest import Shard
from common.errors import UserError
from common.features.cache import find_cache
from common.features.preflight import cache_bytes, check_folder
from common.models.backbone import Backbone, load_backbone
from common.models.input_size import fitted_to
from common.settings.schema import RunConfig
from common.system.cli import progress_line

Verdict = Literal["ok", "wrong", "left out"]

_T = TypeVar("_T")
# the largest network (DeepLabV3 on MobileNetV2) on disk
NETWORK_BYTES = 51_000_000
# faulty files that are listed one by one; more would push the other findings off the screen
MOST_LISTED = 20


@dataclass(frozen=True)
class Finding:
    """What one check found: ``text`` is a sentence, ``more`` are further faults of the same kind."""

    name: str
    verdict: Verdict
    text: str
    more: tuple[str, ...] = ()

    def lines(self) -> str:
        """Return the finding as it is printed."""
        head = f"{self.verdict:<9} {self.name:<12} {' '.join(self.text.splitlines())}"
        return "\n".join([head, *(f"{'':<23}{text}" for text in self.more)])


@dataclass(frozen=True)
class Questions:
    """What is to be checked, apart from the site's own settings."""

    config: RunConfig
    labels: bool = False
    classes: str | None = None
    server: str | None = None
    root_certificates: Path | None = None
    key: Path | None = None


def attempt(name: str, make: Callable[[], _T], text: Callable[[_T], str]) -> tuple[Finding, _T | None]:
    """Run one check; return what it made, if anything, and what there is to say about it."""
    try:
        made = make()
        return Finding(name, "ok", text(made)), made
    except UserError as error:
        return Finding(name, "wrong", str(error)), None


def examine(name: str, check: Callable[[], str]) -> Finding:
    """Run one check: what it returns is fine, a `UserError` says what is not."""
    return attempt(name, check, str)[0]


def check_site(site: SiteConfig, asked: Questions) -> Iterator[Finding]:
    """Yield one finding per check, as soon as it is known."""
    yield from _check_data(site, asked)
    yield from _check_connection(asked)


def _check_data(site: SiteConfig, asked: Questions) -> Iterator[Finding]:
    config = asked.config

    def described(read: Shard) -> str:
        return f"{read.path}: {count_text(len(read), 'image')} below {read.root}"

    manifest = attempt("manifest", site.load_shard, described)
    finding, shard = manifest
    yield finding
    if shard is not None:
        yield check_files(shard, labels=False)
        if asked.labels or config.facts.opens_labels:
            yield check_site_labels(shard, asked.classes or ("" if shard.classes else config.eval.classes))
        yield examine("size", lambda: check_size(site, shard, config))
    else:
        yield Finding("images", "left out", "the manifest has to be readable first")
    yield examine("device", lambda: describe_device(site.device, site.gpu_share))
    if config.facts.caches_features:
        yield from _check_features(site, shard, config)
    else:
        yield Finding("weights", "ok", f"none needed: task '{config.task}' sends the whole network")
    yield examine("state", lambda: check_state(site, config))


def _check_features(site: SiteConfig, shard: Shard | None, config: RunConfig) -> Iterator[Finding]:
    if shard is not None:
        config = fitted_to(config, shard)
    model = site.apply_weights(config.model)

    def described(made: Backbone) -> str:
        origin = f"{model.backbone} from {model.weights}, sha256 {made.weights_hash[:12]}"
        return f"{origin}; all sites must have the same"

    weights = attempt("weights", lambda: load_backbone(model, config.seed, "cpu"), described)
    finding, backbone = weights
    yield finding
    if shard is not None and backbone is not None:
        yield examine("cache", lambda: check_cache(site, shard, backbone, config))
    else:
        yield Finding("cache", "left out", "its size follows from the manifest and the weights")


def check_files(shard: Shard, *, labels: bool) -> Finding:
    """Decode every image or, where they may be opened, every label."""
    name, fine = ("labels", " and have known values") if labels else ("images", "")
    faults = check_shard(shard, labels=labels, progress=progress_line(f"checking {name}"))
    if not faults:
        return Finding(name, "ok", f"all {len(shard)} can be read{fine}")
    if len(faults) == 1:
        return Finding(name, "wrong", faults[0])
    listed = tuple(faults[:MOST_LISTED])
    if len(faults) > MOST_LISTED:
        listed += (f"... and {len(faults) - MOST_LISTED} more",)
    return Finding(name, "wrong", f"{len(faults)} of {len(shard)} cannot be used:", listed)


def check_site_labels(shard: Shard, classes: str) -> Finding:
    """Open every label by the table that was named, or by the shard's own."""
    try:
        return check_files(replace(shard, classes=load_table(classes)) if classes else shard, labels=True)
    except UserError as error:
        return Finding("labels", "wrong", str(error))


def check_size(site: SiteConfig, shard: Shard, config: RunConfig) -> str:
    """Compare number and sizes of images with what a training step, or a plain sum, needs."""
    check_shard_fits(shard, config)
    if config.facts.caches_features and (not config.loss.facts.steps or config.centroids.polish_passes):
        site.refuse_few_images(len(shard), config)
    if config.facts.frozen_backbone:
        return f"{count_text(len(shard), 'image')} are enough for {config.loss.objective} training"
    return f"{count_text(len(shard), 'image')} can be stacked for task '{config.task}'"


def check_state(site: SiteConfig, config: RunConfig) -> str:
    """Check that there is room for what a site remembers, where it labels its own pixels the networks for that."""
    free = check_folder(site.state_dir, 0, "state folder")
    needed = 2 * NETWORK_BYTES if config.facts.self_trains else 0
    if free < needed:
        raise UserError(
            f"Two networks need {megabytes(needed)} but the disk of the state folder {site.state_dir} has "
            f"{megabytes(free)} left; free some space, or choose another one with --state."
        )
    return f"{site.state_dir}, {megabytes(free)} free"


def check_cache(site: SiteConfig, shard: Shard, backbone: Backbone, config: RunConfig) -> str:
    """Check that there is room for the features, or that they are there already."""
    model = site.apply_weights(config.model)
    found = find_cache(shard, model, config.cache, site.cache_dir, config.seed, site.torch_device())
    if found is not None:
        return f"{site.cache_dir} holds the features of all {len(shard)} images already"
    needed = cache_bytes(len(shard), backbone, model, config.cache, config.seed)
    free = check_folder(site.cache_dir, needed)
    return f"{site.cache_dir}, features need {megabytes(needed)}, {megabytes(free)} free"


def describe_device(name: str, share: float = 1.0) -> str:
    """Find the device and let it work for a moment, within its share of a GPU's memory."""
    import torch

    from common.system.device import choose_device, limit_memory

    device = choose_device(name)
    try:
        limit_memory(device, share)
        torch.ones(8, 8, device=device).sum().item()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"Device '{device}' does not work ({reason}); set --device cpu, or mend its driver."
        ) from None
    if device.type != "cuda":
        if share < 1:
            raise UserError(
                f"gpu-share is {share:g} but this site has no GPU that torch can use; leave it out, or install a "
                "torch build that fits the driver."
            )
        return f"{device}, {torch.get_num_threads()} threads"
    memory = torch.cuda.get_device_properties(device).total_memory / 1e9
    limit = f", of which this site takes {share * memory:.1f} GB at most" if share < 1 else ""
    return f"{device}: {torch.cuda.get_device_name(device)}, {memory:.0f} GB{limit}"


def _check_connection(asked: Questions) -> Iterator[Finding]:
    file, key = asked.root_certificates, asked.key
    certificates = None if file is None else examine("certificates", lambda: check_certificates(file))
    if certificates is not None:
        yield certificates
    if key is not None:
        yield examine("key", lambda: check_key(key))
    if asked.server is None:
        yield Finding("server", "left out", "no address was given (--server HOST:PORT)")
        return
    finding, address = attempt("server", lambda: _reach(str(asked.server)), lambda found: f"{found} answers")
    yield finding
    if file is None:
        if address is not None:
            yield Finding("encryption", "left out", "no certificates were given (--root-certificates F)")
    elif address is None or certificates is None or certificates.verdict != "ok":
        yield Finding("encryption", "left out", "needs the certificates and a server that answers")
    else:
        yield examine("encryption", lambda: shake_hands(address, file))


def _reach(server: str) -> Address:
    address = parse_address(server)
    connect(address).close()
    return address


def count_text(number: int, noun: str) -> str:
    """Return '1 image', '2 images'."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def megabytes(count: int) -> str:
    """Return bytes as people read them."""
    return f"{count / 1e9:.1f} GB" if count >= 10**9 else f"{count / 1e6:.1f} MB"
