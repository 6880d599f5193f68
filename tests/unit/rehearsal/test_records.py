"""What a run left, read from a folder that was written by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

from app.checkpoint.attempts import AttemptRecord
from app.rehearsal.records import read_run
from app.storage.local import LocalStorage


def test_losses_speed_starts_and_videos_are_read(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    lines = [
        {"step": 0, "valid_loss": 1.0},
        {"step": 2, "loss": 0.9, "samples_per_s": 3.0},
        {"step": 4, "loss": 0.8, "samples_per_s": 5.0},
        {"step": 6, "loss": 0.8, "samples_per_s": 4.0},
        {"step": 6, "valid_loss": 0.5},
    ]
    text = "\n".join(json.dumps(line) for line in lines) + "\n"
    storage.write_small("metrics/000000-000000.jsonl", text.encode())
    for number, checkpoint in enumerate((None, "step-0000000004.000000")):
        record = AttemptRecord(
            number=number,
            owner="0123abcd",
            started="2026-01-01T00:00:00Z",
            world={"world_size": 1},
            decided=True,
            resumed_from=checkpoint,
        )
        storage.write_small(record.key, record.to_json())
    storage.write_small("samples/step-0000000006/p000-model.mp4", b"x")
    storage.write_small("complete.json", b"{}")

    record = read_run(storage)

    assert (record.loss_start, record.loss_end, record.samples_per_s) == (1.0, 0.5, 4.0)
    assert record.attempts == (None, "step-0000000004.000000")
    assert record.videos == ("samples/step-0000000006/p000-model.mp4",)
    assert record.is_complete


def test_an_empty_folder_is_a_run_without_anything(tmp_path: Path) -> None:
    record = read_run(LocalStorage(tmp_path))

    assert math.isnan(record.loss_start)
    assert (record.attempts, record.videos, record.is_complete) == ((), (), False)
