"""Reasons that leave a site where it could not answer: codes with fixed sentences, so that no file name is in them.

What knows files speaks in codes. What knows only the server's own words and numbers (settings, secure sums, the
policy) may quote them. The site's own log has the whole sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from common.errors import UserError

# Code, what its sentences hold, what is sent. The first that fits counts; a group of digits may be sent as it is.
_CODES = (
    ("egress-ledger", r"egress ledger", "it cannot write the egress ledger; nothing was sent"),
    ("disk-full", r"features need (\d+) bytes", "features need {} bytes, for which its disk has no room"),
    ("disk-full", r"No space left|[Dd]isk quota|free some space", "its disk is full"),
    ("gpu-memory", r"gpu-share|has no room for the features", "its GPU has no room for the work"),
    ("shard", r"does not know its shard", "it does not know its shard"),
    ("name", r"no name of its own", "its administrator has given it no name"),
    ("manifest", r"line (\d+) is no JSON", "its manifest line {} is no JSON"),
    ("manifest", r"[Mm]anifest .*does not exist", "its manifest does not exist"),
    (
        "manifest",
        r"[Mm]anifest|data root| line (\d+)|partition\.json|[Ss]hard",
        "its manifest cannot be used",
    ),
    ("cache", r"[Ff]eature cache", "its feature cache cannot be used"),
    ("weights", r"[Ww]eights", "its backbone weights are missing or do not fit"),
    ("labels", r"[Ll]abel|[Cc]lass", "a label, or its class table, cannot be used"),
    ("images", r"[Ii]mage|[Pp]icture|pixels", "an image cannot be used"),
    ("setting", r"[Ss]ite setting|[Dd]evice", "one of its own settings is wrong"),
    ("state", r"state|teacher|network|mask", "what it remembers of earlier rounds cannot be used"),
)
_WHEEL = "siteseg."  # the package inside which ours lie in the wheel
_OTHER = "failed: it could not do its work"
# Modules that see no file: their sentences hold the server's words, numbers, and names of settings and sites.
_PUBLIC = (
    "client.policy",
    "client.privacy.",
    "client.work.base",
    "client.work.unsupervised",
    "common.losses.",
    "common.registry",
    "common.settings.",
    "common.system.device",
    "common.wire",
    "common.arrays",
)


def coded_reason(error: BaseException) -> str:
    """Return why a deployed site failed, as ``code: sentence``; words of its own only where no file is known."""
    origin = [name for name in _modules(error) if name.partition(".")[0] in ("client", "common")]
    public = tuple(name.removeprefix(_WHEEL) for name in _PUBLIC)
    if isinstance(error, ValueError) and origin and origin[-1].startswith(public):
        return public_reason(error)
    if not isinstance(error, UserError):
        return f"{_OTHER} ({type(error).__name__})"
    for code, pattern, sentence in _CODES:
        found = re.search(pattern, str(error))
        if found:
            return f"{code}: {sentence.format(*(found.groups() or ('',)))}"
    return _OTHER


def _modules(error: BaseException) -> Iterator[str]:
    """Yield the modules that an error came through, from the caller to where it was raised."""
    step = error.__traceback__
    while step is not None:
        yield str(step.tb_frame.f_globals.get("__name__", "")).removeprefix(_WHEEL)
        step = step.tb_next


_FILE_TYPES = "jpe?g|png|tiff?|bmp|webp|gif|dcm|nii|gz|jsonl?|csv|txt|toml|npy|bin|pem|pt|pth|safetensors"
_PRIVATE = (
    # from a slash to the next ending: names of folders and files may hold spaces
    (re.compile(r"[^\s'\"(]*[/\\][^;:'\"()]*?\.\w{1,11}\b(?![/\\])"), "(path)"),
    (re.compile(r"[^\s'\"(]*[/\\][^\s'\")]*"), "(path)"),
    (re.compile(rf"(['\"])[^'\"]*\.({_FILE_TYPES})\1", re.I), "(file)"),
    (re.compile(rf"[\w.-]+\.({_FILE_TYPES})\b", re.I), "(file)"),
)


def public_reason(error: BaseException, private: Iterable[object] = ()) -> str:
    """Return why a site failed, without the names of its files: those stay on the site.

    ``private`` are paths that the site knows of; they go first, whatever they look like.
    """
    text = str(error)
    for known in sorted({str(path) for path in private} - {"", ".", "/"}, key=len, reverse=True):
        text = text.replace(known, "/known")  # which the patterns below take away
    for pattern, word in _PRIVATE:
        text = pattern.sub(word, text)
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return f"{kind}{text}"[:400]
