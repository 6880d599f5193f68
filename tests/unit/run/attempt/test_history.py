"""What the run's own metrics say of the steps behind a checkpoint."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from app.checkpoint.attempts import begin_attempt, note_resumed
from app.checkpoint.layout import CheckpointRef
from app.run.attempt.history import MetricsRecord, records_before, validation_at
from app.storage.local import LocalStorage
from tests.unit.run.folders import WORLD


def part(storage: LocalStorage, attempt: int, number: int, *lines: dict[str, object]) -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    storage.write_small(f"metrics/{attempt:06}-{number:06}.jsonl", text.encode())


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    """Attempt 1 went to step 5, attempt 2 from its step 3 to step 6."""
    made = LocalStorage(tmp_path / "run")
    note_resumed(made, begin_attempt(made, WORLD), None)
    part(made, 1, 0, {"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5})
    part(made, 1, 1, {"step": 3, "loss": 0.25})
    part(made, 1, 2, {"step": 4, "loss": 9.0}, {"step": 5, "loss": 9.0})
    note_resumed(made, begin_attempt(made, WORLD), "step-0000000003.000001")
    part(made, 2, 0, {"step": 3, "valid_loss": 0.75}, {"step": 4, "loss": 0.1})
    part(made, 2, 1, {"step": 5, "loss": None}, {"step": 6, "loss": 0.2})
    return made


def numbers(records: list[MetricsRecord]) -> list[tuple[int, dict[str, float]]]:
    return [(one.step, one.values) for one in records]


def test_records_follow_the_line_of_the_checkpoint(storage: LocalStorage) -> None:
    found = records_before(storage, CheckpointRef(2, 6), 2)

    assert [one.step for one in found] == [2, 3, 3, 4, 5, 6]
    assert numbers(found)[:4] == [
        (2, {"loss": 0.5}),
        (3, {"valid_loss": 0.75}),
        (3, {"loss": 0.25}),
        (4, {"loss": 0.1}),
    ]
    assert math.isnan(found[4].values["loss"])


def test_records_end_at_the_step_of_the_checkpoint(storage: LocalStorage) -> None:
    assert [one.step for one in records_before(storage, CheckpointRef(1, 4), 1)] == [1, 2, 3, 4]
    assert [one.step for one in records_before(storage, CheckpointRef(2, 4), 4)] == [4]


def test_a_validation_is_found_where_there_was_one(storage: LocalStorage) -> None:
    assert validation_at(storage, CheckpointRef(2, 6)) is None

    part(storage, 2, 2, {"step": 6, "valid_loss": 0.5})

    assert validation_at(storage, CheckpointRef(2, 6)) == {"valid_loss": 0.5}


def test_a_damaged_part_costs_its_lines_only(storage: LocalStorage) -> None:
    storage.write_small("metrics/000002-000001.jsonl", b'\xff\n[1]\n{"step": "x"}\n{"step": 6')

    assert [one.step for one in records_before(storage, CheckpointRef(2, 6), 4)] == [4]
