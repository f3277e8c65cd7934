"""The line of metrics: old lines are read and written byte for byte, fields that were not set are not written."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from pydantic import ValidationError

from common.evaluation.score import RoundRecord

RUNS = Path(__file__).parents[2] / "fixtures" / "runs"


def old_lines() -> list[str]:
    lines = []
    for file in sorted(RUNS.glob("*.tar.xz")):
        with tarfile.open(file) as archive:
            for member in archive:
                if member.name.endswith("metrics.jsonl"):
                    opened = archive.extractfile(member)
                    assert opened is not None
                    lines += opened.read().decode().splitlines()
    return lines


def test_lines_of_old_runs_come_back_byte_for_byte() -> None:
    lines = old_lines()
    assert len(lines) > 10
    for line in lines:
        record = RoundRecord.model_validate(json.loads(line))
        assert json.dumps(record.to_json()) == line
        assert not record.model_extra and not any(one.model_extra for one in record.sets.values())


def test_what_a_line_lacks_has_a_default_and_is_not_written() -> None:
    record = RoundRecord.model_validate({"round": 3, "future": [1]})
    assert (record.miou, record.sites, record.counted, record.sets) == (None, [], True, {})
    assert record.to_json() == {"round": 3, "future": [1]}
    record.checkpoint_sha256 = "abc"
    assert record.to_json() == {"round": 3, "checkpoint_sha256": "abc", "future": [1]}


@pytest.mark.parametrize(
    "line", [{}, {"round": None}, {"round": 1, "miou": "high"}, {"round": 1, "sites": 3}]
)
def test_what_is_no_record_is_refused(line: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        RoundRecord.model_validate(line)
