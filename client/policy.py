"""The site's policy: what it answers, on which terms, and how much of its privacy it gives away over its life.

A file of the site's own, in TOML. What it refuses is an answer that names the rule; nothing is computed for it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import re
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from client.site import SiteConfig
from common import wire
from common.errors import UserError, user_error
from common.settings.schema import RunConfig
from common.settings.section import kebab
from common.system.atomic import atomic_write_text

# What a run may ask for, by the names of the egress ledger; the messages of a secure sum belong to these.
_PHASES = {
    "hello": wire.HELLO,
    "train": wire.TRAIN,
    "sums": wire.SUMS,
    "style": wire.STYLE,
    "evaluate": wire.EVALUATE,
}
# Those in which numbers of the images leave, and that noise covers.
_COUNTED = (wire.TRAIN, wire.SUMS)
_ACCOUNT = "epsilon.json"


class PolicyRefusal(UserError):
    """The site's policy does not allow it; the sentence names the rule and none of the site's files."""


class Policy(BaseModel):
    """The rules; an empty list or 0 is no rule."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=kebab, populate_by_name=True)

    tasks: tuple[str, ...] = Field((), description="tasks that it takes part in; empty: any")
    presets: tuple[str, ...] = Field((), description="presets that a run may have; empty: any")
    phases: tuple[Literal["hello", "train", "sums", "style", "evaluate"], ...] = Field(
        (), description="what it answers: hello, train, sums, style, evaluate; empty: all"
    )
    secure_sum: Literal["required", "allowed", "refused"] = Field(
        "allowed", description="whether the server may, or must, see totals over sites only"
    )
    smallest_quorum: float = Field(0.0, ge=0, le=1, description="a run's privacy.quorum is at least this")
    smallest_federation: int = Field(0, ge=0, description="a run's sites.minimum is at least this")
    largest_epsilon: float = Field(
        0.0,
        ge=0,
        description="privacy loss over this site's life, by its own account; runs without noise are refused",
    )
    delta: float = Field(1e-5, gt=0, lt=1, description="probability at which that epsilon is meant")
    largest_clip_norm: float = Field(
        0.0, ge=0, description="a run's privacy.clip-norm is set, and at most this"
    )
    minimum_count: int = Field(0, ge=0, description="raises a run's privacy.minimum-count")
    minimum_images: int = Field(0, ge=0, description="raises a run's privacy.minimum-images")
    code: Literal["approved", "any"] = Field(
        "approved",
        description="approved: only applications that `client approve` was told of, by `client serve`",
    )


def read_policy(path: Path) -> Policy:
    """Read a policy file; raises `UserError` that names what is wrong in it."""
    try:
        return Policy.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise user_error(error, f"{path}: rule", "see `client policy --help`") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(
            f"The policy {path} cannot be read ({error}); write one by `client policy --write`."
        ) from None


def policy_toml(policy: Policy) -> str:
    """Return a policy as a file with a line about each rule."""
    lines = ["# What this site answers. Read anew for every message.", ""]
    for name, field in Policy.model_fields.items():
        value = getattr(policy, name)
        lines += [
            f"# {field.description}",
            f"{kebab(name)} = {json.dumps(list(value) if value == () else value)}",
            "",
        ]
    return "\n".join(lines)


def explained(policy: Policy, spent: float | None = None) -> list[tuple[str, str, str]]:
    """Return (rule, value, meaning) of each rule; ``spent`` is what the site's account says."""
    rows = []
    for name, field in Policy.model_fields.items():
        value = getattr(policy, name)
        shown = ", ".join(value) if isinstance(value, tuple) else str(value)
        if name == "largest_epsilon" and spent is not None:
            shown += f" ({spent:.2f} given)"
        rows.append((kebab(name), "no rule" if not value else shown, str(field.description)))
    return rows


def admitted(
    policy: Policy, action: str, task: wire.Task, settings: RunConfig, site: SiteConfig
) -> RunConfig:
    """Return the settings by which the site answers; raises `PolicyRefusal` where a rule says no.

    What the answer costs in epsilon is on the site's account before anything is computed.
    """
    privacy = settings.privacy
    for rule, known, given in (
        ("tasks", policy.tasks, settings.task),
        ("presets", policy.presets, settings.preset),
    ):
        if known and given not in known:
            raise _refusal(rule, f"{', '.join(known)}; this run has '{given}'")
    phase = next((name for name, its_action in _PHASES.items() if its_action == action), None)
    if policy.phases and phase is not None and phase not in policy.phases:
        raise _refusal("phases", f"{', '.join(policy.phases)}; this is '{phase}'")
    if (privacy.secure_sum and policy.secure_sum == "refused") or (
        not privacy.secure_sum and policy.secure_sum == "required"
    ):
        raise _refusal(
            "secure-sum", f"'{policy.secure_sum}'; this run has privacy.secure-sum = {privacy.secure_sum}"
        )
    if privacy.secure_sum and privacy.quorum < policy.smallest_quorum:
        raise _refusal("smallest-quorum", f"{policy.smallest_quorum}; this run has {privacy.quorum}")
    if settings.sites.minimum < policy.smallest_federation:
        raise _refusal(
            "smallest-federation", f"{policy.smallest_federation}; this run has {settings.sites.minimum}"
        )
    if policy.largest_clip_norm and not 0 < privacy.clip_norm <= policy.largest_clip_norm:
        raise _refusal("largest-clip-norm", f"{policy.largest_clip_norm}; this run has {privacy.clip_norm}")
    if privacy.noise_multiplier and privacy.minimum_count < policy.minimum_count:
        # beside noise the server applies it, to the total
        raise _refusal("minimum-count", f"{policy.minimum_count}; this run has {privacy.minimum_count}")
    if policy.largest_epsilon:
        _spend(policy, action, task, settings, site)
    raised = {
        "minimum_count": max(privacy.minimum_count, policy.minimum_count),
        "minimum_images": max(privacy.minimum_images, policy.minimum_images),
    }
    return settings.model_copy(update={"privacy": privacy.model_copy(update=raised)})


# Set by `client serve` for the process of a task whose application it has found among those approved.
APPROVED = "SITESEG_APPROVED_APPLICATION"


def need_approval(policy: Policy) -> None:
    """Raise `PolicyRefusal` where only approved code may run, and nobody looked at which code this is."""
    if policy.code == "approved" and not os.environ.get(APPROVED):
        raise _refusal("code", "'approved', which `client serve` sees to; start this site by it")


def approvals_file(policy: Path) -> Path:
    """Return the file beside a policy with the hashes of approved applications, one on a line."""
    return policy.with_name(policy.stem + ".approved")


def approved(policy: Path) -> list[str]:
    """Return the SHA-256 of the applications that may run here."""
    file = approvals_file(policy)
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [line.split()[0] for line in lines if line.split() and not line.startswith("#")]


def approve(policy: Path, application: str) -> None:
    """Let an application run at this site; raises `UserError` for what is no SHA-256."""
    read_policy(policy)
    if not re.fullmatch("[0-9a-f]{64}", application):
        raise UserError(
            f"{application!r} is no hash of an application; give the 64 digits that the site's log shows."
        )
    known = approved(policy)
    if application not in known:
        atomic_write_text(approvals_file(policy), "".join(f"{found}\n" for found in [*known, application]))


def check_application(policy: Path | None, content: bytes, told: str) -> str:
    """Return the SHA-256 of an application that may run here; raises `PolicyRefusal` for any other.

    ``told`` is what the server calls its hash. To be called before anything of the application is unpacked.
    """
    found = hashlib.sha256(content).hexdigest()
    if found != told:
        raise PolicyRefusal(
            "This site refuses the application: it does not have the hash that the server names."
        )
    if policy is not None and read_policy(policy).code == "approved" and found not in approved(policy):
        raise _refusal("code", f"'approved', and application {found} is not (`client approve`)")
    return found


def _refusal(rule: str, text: str) -> PolicyRefusal:
    return PolicyRefusal(f"This site's policy refuses it: rule '{rule}' is {text}.")


def epsilon_given(policy: Policy, state: Path) -> float:
    """Return the epsilon that a site with this state folder has given away so far, over all runs."""
    return _epsilon(_read(state / _ACCOUNT), policy.delta)


def _epsilon(account: dict[str, int], delta: float) -> float:
    from common.privacy.epsilon import epsilon_of  # scipy, which a site without this rule need not wait for

    # Gaussian releases add up by the squares of their inverse multipliers (Dong, Roth and Su, 2022)
    total = sum(count / float(noise) ** 2 for noise, count in account.items())
    return epsilon_of(1 / math.sqrt(total), 1, delta) if total else 0.0


def _read(path: Path) -> dict[str, int]:
    if not path.is_file():
        return {}
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["releases"]
        return {str(float(noise)): int(count) for noise, count in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise PolicyRefusal("This site's policy refuses it: its account of epsilon is broken.") from None


def _spend(policy: Policy, action: str, task: wire.Task, settings: RunConfig, site: SiteConfig) -> None:
    from common.losses.base import TRAIN  # torch; `client serve` starts its SuperNode without it

    noise = settings.privacy.noise_multiplier
    if not noise:
        raise _refusal("largest-epsilon", f"{policy.largest_epsilon}; this run adds no noise")
    if action in (wire.STYLE, wire.EVALUATE):
        raise _refusal("largest-epsilon", f"{policy.largest_epsilon}; noise does not cover '{action}'")
    if action not in _COUNTED:
        return
    steps = action == wire.TRAIN and task.options.get("phase", TRAIN) == TRAIN
    path = site.state_dir / site.name / _ACCOUNT
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("ab") as lock:  # two runs may ask at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        account = _read(path)
        account[str(noise)] = account.get(str(noise), 0) + (
            2 if steps else 1
        )  # the head's change, and the sums
        if (would_be := _epsilon(account, policy.delta)) > policy.largest_epsilon:
            raise _refusal(
                "largest-epsilon", f"{policy.largest_epsilon}; with this answer it would be {would_be:.2f}"
            )
        atomic_write_text(path, json.dumps({"releases": account}))
