"""How does one labelled data set become a source with labels, sites without, and targets to score on?

Adaptation starts from labelled images of some domains and goes on at sites of others that have none. A data
set whose domains are known serves for both: some of its domains become the source at the server, others lose
their labels and become sites, others are kept for scoring.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace

from common.data.manifest import Entry
from common.errors import UserError
from partitions.sources.base import SAME, SOURCE, TRAIN_EVAL, Dataset

TARGET = "target"


@dataclass(frozen=True)
class Roles:
    """Which domains become what, as the options ``--sites-of``, ``--source`` and ``--score`` name them."""

    sites: tuple[str, ...]
    source: tuple[str, ...]
    score: tuple[str, ...] = ()

    def by_option(self) -> dict[str, tuple[str, ...]]:
        """Return the domains by option."""
        return {"--sites-of": self.sites, "--source": self.source, "--score": self.score}


def parse_roles(sites: str | None, source: str | None, score: str | None) -> Roles | None:
    """Read the three options, domains separated by commas; None where none is given.

    Raises `UserError` where only some of them are given or a domain stands twice.
    """
    if sites is None and source is None and score is None:
        return None
    given = [_names(text) for text in (sites, source, score)]
    if not given[0] or not given[1]:
        raise UserError(
            "--sites-of, --source and --score belong together; give at least --sites-of (domains without labels) "
            "and --source (labelled domains), names separated by commas."
        )
    roles = Roles(*given)
    owner: dict[str, str] = {}
    for option, names in roles.by_option().items():
        for name in names:
            if name in owner:
                raise UserError(
                    f"The domain {name!r} is given to {owner[name]} and to {option}; an image has one role, so "
                    "name it once."
                )
            owner[name] = option
    return roles


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def adapt(data: Dataset, roles: Roles) -> Dataset:
    """Give the domains of the training images of ``data`` their roles.

    The result's images are those of the sites, in the order in which ``roles`` names their domains, and
    keep no label path in site manifests. Evaluation manifests of the data set stay, of ``ts1`` what is of
    the sites' domains or of none that is known; ``source``, ``train_eval`` (the sites' own images, labelled)
    and, with ``--score``, ``target`` join them. Domains without a role are left out. Raises `UserError` for
    a domain that the data set does not have, where a source or target image has no label, and where a list
    of the user's is called ``source`` or ``target``.
    """
    members: dict[str, list[Entry]] = {}
    for entry in data.images:
        members.setdefault(entry.domain or "", []).append(entry)
    known = [name for name in members if name]
    for option, names in roles.by_option().items():
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                listed = ", ".join(known) if known else "domains, which the --domain-* options give"
                raise UserError(f"{option} names the domain {name!r}: {hint}expected {listed}.")

    def of(names: tuple[str, ...]) -> list[Entry]:
        return [entry for name in names for entry in members[name]]

    taken = next((name for name in (SOURCE, TARGET) if name in data.evaluation), None)
    if taken is not None:
        raise UserError(
            f"--test names the manifest {taken!r}, which --source and --score keep for themselves; give another "
            "name, as NAME=F."
        )
    sites = of(roles.sites)
    added = {SOURCE: of(roles.source), TARGET: of(roles.score)}
    for name, entries in added.items():
        bare = next((entry for entry in entries if entry.label is None), None)
        if bare is not None:
            raise UserError(
                f"The image {data.root / bare.image} of {name}.jsonl has no label map; source and target need "
                "labels, so choose labelled domains."
            )
    added[TRAIN_EVAL] = sites if all(entry.label is not None for entry in sites) else []
    own = {name: entries for name, entries in data.evaluation.items() if name not in added}
    kept = (None, *roles.sites)  # a list of the user's may say nothing of domains
    own[SAME] = [entry for entry in own.get(SAME, []) if entry.domain in kept]
    return replace(
        data,
        images=sites,
        clients={entry.image: data.clients[entry.image] for entry in sites if entry.image in data.clients},
        evaluation={name: entries for name, entries in (added | own).items() if entries},
        open_labels=False,
        settings={
            **data.settings,
            "sites_of": ",".join(roles.sites),
            "source": ",".join(roles.source),
            "score": ",".join(roles.score),
        },
    )
