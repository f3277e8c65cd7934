"""A site's own settings, where its images are, who it is, and what it may use; its shards and features.

A site's engineer decides this on the site: ``--node-config`` first, then environment variables
(``SITESEG_SHARD`` and so on). Only a simulated site, which has neither, takes it from the run's settings.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.data.manifest import Shard, pool_shards, read_shard
from common.errors import UserError, user_error
from common.settings.schema import RunConfig
from common.settings.section import kebab
from common.settings.unsupervised import Model

if TYPE_CHECKING:
    from common.features.source import Features

_log = logging.getLogger(__name__)


def environment_name(key: str) -> str:
    """Return the environment variable of one of a site's settings: ``SITESEG_DATA_ROOT`` for ``data-root``."""
    return "SITESEG_" + key.upper().replace("-", "_")


class SiteConfig(BaseModel):
    """A site's own settings. Paths are the site's; none of them ever leaves it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    shards: tuple[Path, ...]
    data_root: Path | None = None
    eval_shard: Path | None = None
    cache_dir: Path
    state_dir: Path
    weights: Path | None = None
    device: str = "auto"
    threads: int = Field(0, ge=0)
    readers: int = Field(0, ge=0)
    decoded: float = Field(2.0, ge=0)
    gpu_share: float = Field(1.0, gt=0, le=1)
    key: Path | None = None
    members: Path | None = None
    minimum_images: int | None = Field(None, ge=0)  # the site's word on privacy.minimum-images
    policy: Path | None = None
    simulated: bool = False
    named: bool = True  # by its administrator, or by a number: else its name is that of a file

    def need_name(self) -> None:
        """Raise `UserError` where the site's name would tell the name of a file."""
        if not self.named:
            raise UserError(
                f"This site has no name of its own; give --site NAME, node config site, or {environment_name('site')}: "
                "names of files stay here."
            )

    def load_shard(self) -> Shard:
        """Read the manifest (several are joined: centralised training)."""
        shards = [read_shard(path, self.data_root) for path in self.shards]
        return shards[0] if len(shards) == 1 else pool_shards(shards, self.name)

    def load_eval_shard(self) -> Shard | None:
        """Read the labelled evaluation manifest, where the site has one."""
        return None if self.eval_shard is None else read_shard(self.eval_shard, self.data_root)

    def private_paths(self) -> tuple[Path, ...]:
        """Return the paths that must not appear in anything that leaves the site."""
        own = (self.cache_dir, self.state_dir, self.weights, self.policy, self.key, self.members)
        given = (self.data_root, self.eval_shard, *own)
        folders = (*self.shards, *(path.parent for path in self.shards), *(path for path in given if path))
        return (*folders, *(path.resolve() for path in folders))  # messages may show either form

    def apply_weights(self, model: Model) -> Model:
        """Put the site's own copy of the weights file in the place of the server's path."""
        return model if self.weights is None else model.model_copy(update={"weights": str(self.weights)})

    def refuse_few_images(self, images: int, settings: RunConfig) -> None:
        """Raise `UserError` where sums of so few images would travel plainly: they tell which images they are of.

        The site's own minimum wins over ``privacy.minimum-images``. Secure summation and noise lift both. A simulated
        site has nothing to hide: there the server warns.
        """
        least = settings.privacy.minimum_images if self.minimum_images is None else self.minimum_images
        if self.simulated or settings.privacy.totals_only or images >= least:
            return
        raise UserError(
            f"This site holds {images} images and plain sums of fewer than {least} tell which ones they are "
            "(minimum-images); set privacy.secure-sum to true, or lower privacy.minimum-images if nobody may mind."
        )

    def torch_device(self) -> str:
        """Return the device to train on: as set, or CUDA where there is one."""
        from common.system.device import choose_device

        return str(choose_device(self.device))

    def reading(self, device: str) -> dict[str, Any]:
        """Return by what means images are read (arguments of `ImageDataset`)."""
        from common.data.decoded import DecodedCache

        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        # without a GPU the network itself wants the cores
        readers = self.readers or (cores if device.startswith("cuda") else 0)
        limit = int(self.decoded * 1e9)
        decoded = DecodedCache(self.cache_dir / "decoded", limit) if limit else None
        return {"device": device, "readers": readers, "decoded": decoded}

    def features(self, settings: RunConfig, shard: Shard | None = None) -> Features:
        """Open the cached features of a shard, by default the training shard.

        The frozen backbone runs only where there is no cache yet.
        """
        from common.features.cache import open_features  # torch, which not every message needs

        shard = self.load_shard() if shard is None else shard
        name, started = shard.name, time.monotonic()

        def progress(done: int, total: int) -> None:
            left = (time.monotonic() - started) / max(done, 1) * (total - done)
            _log.info("caching features of %s: %d of %d images, %.0f s left", name, done, total, left)

        return open_features(
            shard,
            self.apply_weights(settings.model),
            settings.cache,
            self.cache_dir,
            device=self.torch_device(),
            seed=settings.seed,
            progress=progress,
        )


# What a site alone may say, in a simulation as well.
_OWN_READING = ("threads", "readers", "decoded")
OWN_KEYS = ("weights", "device", "gpu_share", "minimum_images", "policy", "key", "members", *_OWN_READING)


def site_config(node_config: Mapping[str, object], settings: RunConfig) -> SiteConfig:
    """Assemble a site's settings; raises `UserError` that says which one is missing or wrong."""

    def own(key: str) -> str | None:
        value = node_config.get(key, os.environ.get(environment_name(key)))
        return None if value in (None, "") else str(value)

    shard, partition = own("shard"), node_config.get("partition-id")
    values: dict[str, object]
    if shard is not None:
        base = Path(own("cache") or Path(shard).parent / "cache")
        stem = Path(shard).stem
        values = {"name": own("site") or stem, "shards": (Path(shard),)}
        values["named"] = own("site") is not None or re.fullmatch(r"site-\d{1,6}", stem) is not None
        values |= {"eval_shard": own("eval-shard"), "data_root": own("data-root")}
    elif partition is not None and settings.simulation.shards:
        folder, pool = Path(settings.simulation.shards), settings.sites.pool
        name = "pooled" if pool else f"site-{partition}"
        base = Path(settings.simulation.cache or folder / "cache")
        pattern = settings.eval.shard if settings.eval.where == "sites" else ""
        values = {
            "name": name,
            "shards": tuple(shard_paths(folder)) if pool else (folder / f"{name}.jsonl",),
            "eval_shard": folder / pattern.format(site=name) if pattern else None,
            "data_root": settings.simulation.data_root or None,
            "threads": settings.simulation.threads,
            "simulated": True,
            "readers": settings.simulation.readers,
            "decoded": settings.simulation.decoded,
        }
    else:
        raise UserError(
            "This site does not know its shard: give --node-config 'shard=\"/path/site.jsonl\"' "
            f"or set {environment_name('shard')}."
        )
    # these are the site's alone to say, in a simulation as well; privacy.minimum-images it may replace
    values |= {"cache_dir": base, "state_dir": Path(own("state") or base / "state")}
    found = {key: own(key.replace("_", "-")) for key in OWN_KEYS}
    values |= {key: value for key, value in found.items() if value is not None}
    try:
        site = SiteConfig.model_validate(values)
    except ValidationError as error:
        raise user_error(error, "Site setting", key=kebab) from None
    if site.device == "cpu" and site.gpu_share < 1:
        raise UserError(
            f"Site setting 'gpu-share' is {site.gpu_share:g}, but device is 'cpu'; leave it out, or set device to "
            "'cuda'."
        )
    return site


def shard_paths(folder: Path) -> list[Path]:
    """Return the sites' manifests of a shards folder in the order of their numbers."""
    found = [p for p in folder.glob("site-*.jsonl") if p.stem.removeprefix("site-").isdigit()]
    if not found:
        raise UserError(
            f"{folder} holds no site-0.jsonl; make it with `python -m partitions DATASET --root R --out {folder}`."
        )
    return sorted(found, key=lambda p: int(p.stem.removeprefix("site-")))
