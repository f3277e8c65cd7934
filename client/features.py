"""A site's cached features of a frozen backbone."""

from __future__ import annotations

import logging
import time

from client.site import SiteConfig
from common.data.manifest import Shard
from common.features.cache import open_features
from common.features.source import Features
from common.settings.schema import RunConfig

log = logging.getLogger(__name__)


def site_features(settings: RunConfig, site: SiteConfig, shard: Shard) -> Features:
    """Open the cached features of a shard; the backbone runs only where there is no cache yet."""
    started = time.monotonic()

    def progress(done: int, total: int) -> None:
        left = (time.monotonic() - started) / max(done, 1) * (total - done)
        log.info("caching features of %s: %d of %d images, %.0f s left", shard.name, done, total, left)

    return open_features(
        shard,
        site.apply_weights(settings.model),
        settings.cache,
        site.cache_dir,
        device=site.torch_device(),
        seed=settings.seed,
        progress=progress,
    )
