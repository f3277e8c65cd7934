"""The files of a run directory: choosing the folder, log, metrics, and the lock of its only writer."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from common.checkpoint import Checkpoint, arrays_hash
from common.errors import UserError
from common.evaluation.score import sealed_line, unsealed_line
from common.settings.schema import RunConfig
from common.system.atomic import atomic_write_text, whole_file

# Our packages alone: Flower and torch log to their own places. In the wheel they lie inside the package siteseg.
LOGGERS = tuple(
    __name__.rpartition("server.")[0] + part for part in ("server", "client", "common", "partitions")
)
# A run of weeks must not fill the disk; three older files are kept.
LOG_BYTES = 10_000_000

FIRST_STAGE = "label-free"
"""The folder, in the run directory of a student, that holds the run of its first stage."""

WARNINGS = "warnings.json"
"""What a simulation found, before and after training, that makes masks doubtful."""


def run_warnings(folder: Path) -> tuple[str, ...]:
    """Return the sentences of a run's `WARNINGS`, those after training first; nothing where there is no such file."""
    try:
        record = json.loads((folder / WARNINGS).read_bytes())
        return tuple(str(one["text"]) for when in ("after", "before") for one in record[when])
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def prepare_run_dir(config: RunConfig, resumed_from: Path | None) -> Path:
    """Choose and make the run directory; nothing of an earlier run is ever overwritten.

    A resumed run goes on in the directory of its checkpoint. A name that is taken gets a number, unless the
    user asked for exactly that directory: then `UserError`.
    """
    if config.run_dir:
        run_dir = Path(config.run_dir)
        same = resumed_from is not None and resumed_from.parent.parent.resolve() == run_dir.resolve()
        if (run_dir / "metrics.jsonl").exists() and not same:
            raise UserError(
                f"{run_dir} already holds a run; choose another --run-dir, or go on with it by resume={run_dir}."
            )
    elif resumed_from is not None:
        run_dir = resumed_from.parent.parent
    else:
        base = Path("runs") / f"{config.name}-seed{config.seed}"
        run_dir, number = base, 1
        while (run_dir / "metrics.jsonl").exists():
            number += 1
            run_dir = base.with_name(f"{base.name}-{number}")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        # an existing folder that cannot be written to shows here, not after the first round
        if not os.access(run_dir, os.W_OK):
            raise PermissionError(13, "no permission")
    except OSError as error:
        raise UserError(
            f"Cannot write results to {run_dir}: {error.strerror}; choose a --run-dir you may write to."
        ) from None
    return run_dir.resolve()


def start_logging(run_dir: Path) -> list[logging.Handler]:
    """Send our own log lines to the terminal and, with times, to ``log.txt``."""
    console = logging.StreamHandler(sys.stdout)
    console.setFormatter(logging.Formatter("%(message)s"))
    file = RotatingFileHandler(run_dir / "log.txt", maxBytes=LOG_BYTES, backupCount=3, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handlers: list[logging.Handler] = [console, file]
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        # else handlers of the root logger would print every line again
        logger.propagate = False
        for handler in handlers:
            logger.addHandler(handler)
    return handlers


def stop_logging(handlers: list[logging.Handler]) -> None:
    """Take the handlers of `start_logging` away again and close them."""
    for name in LOGGERS:
        for handler in handlers:
            logging.getLogger(name).removeHandler(handler)
    for handler in handlers:
        handler.close()


def append_metrics(run_dir: Path, line: dict[str, Any]) -> None:
    """Add one round to ``metrics.jsonl``; on disk before anything else happens."""
    # checked before: no reader of JSON has to know infinity
    text = sealed_line(_finite(line))
    with whole_file(), (run_dir / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        # a round counts as acknowledged once its line is on disk
        os.fsync(file.fileno())


def _finite(value: Any) -> Any:
    """Return a value of JSON with null in the place of numbers that JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list) else value


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Return the rounds of ``metrics.jsonl``; a last line that a crash cut off is left out.

    Raises `UserError` where another line is damaged: its round was acknowledged, and must not go in silence.
    """
    path = run_dir / "metrics.jsonl"
    if not path.is_file():
        return []
    *whole, rest = path.read_bytes().split(b"\n")
    lines: list[dict[str, Any]] = []
    sealed = (
        False  # an earlier release may have written the first lines, never one after a line with a checksum
    )
    for number, text in enumerate([*whole, rest] if rest else whole, start=1):
        try:
            lines.append(unsealed_line(text.decode(), sealed))
            sealed = sealed or b'"crc32"' in text
        except (ValueError, RecursionError) as error:
            if number > len(whole):
                break
            raise UserError(
                f"{path} line {number} is damaged ({error}); put it right from 'metrics' in the JSON of that round's "
                "checkpoint, or take the line out."
            ) from None
    return lines


def rewind(run_dir: Path, checkpoint: Checkpoint) -> None:
    """Make ``metrics.jsonl`` end with the round of a checkpoint: a run that goes on writes later ones again.

    Where the process ended between checkpoint and line, the line comes from the checkpoint.
    """
    lines = read_metrics(run_dir)
    kept = [line for line in lines if line["round"] <= checkpoint.round]
    digest = arrays_hash(checkpoint.arrays())
    for line in kept:
        if line["round"] == checkpoint.round and line.get("checkpoint_sha256", digest) != digest:
            raise UserError(
                f"The checkpoint of round {checkpoint.round} is another than {run_dir / 'metrics.jsonl'} names; use "
                "another round's checkpoint."
            )
    # a checkpoint without metrics was made by hand or by an older release
    if "sites" in checkpoint.metrics and (run_dir / "checkpoints").is_dir():
        missing = not any(line["round"] == checkpoint.round for line in kept)
        if missing:
            kept.append(checkpoint.metrics | {"checkpoint_sha256": digest})
    atomic_write_text(run_dir / "metrics.jsonl", "".join(map(sealed_line, kept)))


held: list[Path] = []
"""The run directories that this process writes to: that of a run, then that of its first stage."""


@contextmanager
def sole_writer(run_dir: Path) -> Iterator[None]:
    """Hold a run directory: of two servers that write to it, each would lose the other's rounds.

    The hold ends with the process, however that ends. Raises `UserError` where another process has it.
    """
    with (run_dir / ".lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"Another process still writes to {run_dir}; end it first, or choose another --run-dir."
            ) from None
        except OSError as error:  # a file system without locks
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
        held.append(run_dir)
        try:
            yield
        finally:
            held.remove(run_dir)
