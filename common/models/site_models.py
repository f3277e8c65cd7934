"""The model in a checkpoint where sites keep parts of it to themselves.

Under ``centroids.share`` "none", "head" or "centroids" what is not shared stays, in the checkpoint's ``head`` and
``centroids``, as it was drawn before the first round: whoever segments with it has to name a site.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from common.checkpoint import Checkpoint
from common.errors import UserError
from common.order import natural_key

_SITE = "site/"
# More names than this do not fit into a sentence
_NAMED = 24

_PARTS = frozenset({"head", "centroids"})


def own_sites(saved: Checkpoint) -> tuple[str, ...]:
    """Return the names of the sites of which a checkpoint holds parts, sorted."""
    names = {key.split("/")[1] for key in saved.extra if key.startswith(_SITE)}
    return tuple(sorted(names, key=natural_key))


def unshared(saved: Checkpoint) -> frozenset[str]:
    """Return which of head and centroids no site shares with another, so that there is no common model."""
    if saved.config.centroids.share == "both":  # one site may still keep its own beside the shared model
        return frozenset()
    return _PARTS & {key.split("/")[2] for key in saved.extra if key.startswith(_SITE)}


def chosen_model(
    saved: Checkpoint, where: str, site: str | None = None, needed: Collection[str] = _PARTS
) -> Checkpoint:
    """Return a checkpoint whose head and centroids are those of the shared model, or of one site.

    Args:
        saved: a checkpoint of task `unsupervised`.
        where: its path, for messages.
        site: whose parts come in the place of the shared ones. Its clusters are not named: classes were only
            ever matched to those of a shared model.
        needed: what is looked at, of head and centroids.

    Raises:
        UserError: no site was named though some of ``needed`` is not shared, or that site has nothing of its own.
    """
    if site is None:
        if unshared(saved) & set(needed):
            raise UserError(
                f"Checkpoint {where} holds no model that all sites share (centroids.share is "
                f"'{saved.config.centroids.share}') and no site was named; give --site and one of: {_names(saved)} "
                "(`evaluate` scores each of them by --site all)."
            )
        return saved
    if site not in own_sites(saved):
        known = f"those of: {_names(saved)}" if own_sites(saved) else "only the shared one; leave it out"
        raise UserError(f"--site {site} was given, but of sites' own models {where} holds {known}.")
    prefix = f"{_SITE}{site}/"
    own = {key.removeprefix(prefix): value for key, value in saved.extra.items() if key.startswith(prefix)}
    head = {key.removeprefix("head/"): value for key, value in own.items() if key.startswith("head/")}
    return replace(
        saved,
        head=head or saved.head,
        centroids=own.get("centroids/centroids", saved.centroids),
        mapping=None,
        extra={},
    )


def refuse_site(saved: Checkpoint, where: str, site: str | None) -> None:
    """Raise `UserError` where a site's model is asked of a run of whole networks."""
    if site is not None:
        raise UserError(
            f"--site {site} was given, but {where} is of task '{saved.config.task}', whose checkpoints are looked at "
            "by the shared network or by style cluster; leave it out."
        )


def _names(saved: Checkpoint) -> str:
    names = own_sites(saved)
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
