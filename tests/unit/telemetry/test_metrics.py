"""Numbers to files, TensorBoard, a progress line and W&B."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from app.errors import RetryableError
from app.telemetry.metrics import (
    JsonlTracker,
    ProgressTracker,
    TensorBoardTracker,
    Trackers,
    tracker_name,
)
from app.telemetry.wandb_tracker import WandbRun, WandbTracker


def test_jsonl_parts_are_numbered_and_read_back_to_the_last_bit() -> None:
    written: dict[str, bytes] = {}
    tracker = JsonlTracker(written.__setitem__, attempt=7)
    loss = 0.1 + 0.2

    tracker.log(1, {"loss": loss})
    tracker.flush()
    tracker.flush()
    tracker.log(2, {"loss": float("nan"), "lr": 1e-5})
    tracker.close()

    assert list(written) == ["metrics/000007-000000.jsonl", "metrics/000007-000001.jsonl"]
    first, second = (json.loads(part) for part in written.values())
    assert first == {"step": 1, "loss": loss}
    assert second == {"step": 2, "loss": None, "lr": 1e-5}


def test_lines_wait_for_a_storage_that_does_not_answer() -> None:
    written: dict[str, bytes] = {}
    failures = [True, False]

    def write(key: str, data: bytes) -> None:
        if failures.pop(0):
            raise RetryableError("no answer", where=key, fix="wait")
        written[key] = data

    tracker = JsonlTracker(write, attempt=1)
    tracker.log(1, {"loss": 1.0})
    tracker.flush()
    tracker.log(2, {"loss": 2.0})
    tracker.flush()

    (part,) = written.values()
    assert [json.loads(line)["step"] for line in part.splitlines()] == [1, 2]


def test_names_are_those_of_upstream() -> None:
    assert tracker_name("loss") == "Train/train_loss"
    assert tracker_name("lr") == "Train/lr"
    assert tracker_name("valid_loss") == "Train/valid_loss"


def test_tensorboard_gets_every_number(tmp_path: Path) -> None:
    tracker = TensorBoardTracker(tmp_path, purge_step=0)

    tracker.log(1, {"loss": 0.5, "lr": 0.25})
    tracker.log(2, {"loss": 0.75})
    tracker.close()

    events = EventAccumulator(str(tmp_path)).Reload()
    losses = [(event.step, event.value) for event in events.Scalars("Train/train_loss")]
    assert losses == [(1, 0.5), (2, 0.75)]
    assert [event.value for event in events.Scalars("Train/lr")] == [0.25]


def test_the_progress_line_keeps_the_last_speed() -> None:
    shown: list[str] = []
    tracker = ProgressTracker(shown.append, total_steps=10)

    tracker.log(1, {"loss": 0.5})
    tracker.log(2, {"loss": 0.25, "samples_per_s": 1.5, "eta_s": 3723.0})
    tracker.log(3, {"loss": 0.125, "bad_samples": 0})
    tracker.log(4, {"loss": 0.125, "bad_samples": 2})
    tracker.log(4, {"valid_loss": 1.0})

    assert shown == [
        "step 1/10  loss 0.5000",
        "step 2/10  loss 0.2500  1.50 samples/s  1:02:03 left",
        "step 3/10  loss 0.1250  1.50 samples/s  1:02:03 left",
        "step 4/10  loss 0.1250  1.50 samples/s  1:02:03 left  2 bad samples",
    ]


def test_a_tracker_that_fails_is_disabled_and_the_others_continue(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken:
        def log(self, step: int, values: Mapping[str, float]) -> None:
            raise OSError("disk full")

        def flush(self) -> None:
            raise AssertionError("was left out")

        def close(self) -> None:
            raise AssertionError("was left out")

    shown: list[str] = []
    trackers = Trackers([Broken(), ProgressTracker(shown.append, 2)])

    trackers.log(1, {"loss": 1.0})
    trackers.log(2, {"loss": 1.0})
    trackers.flush()
    trackers.close()

    assert len(shown) == 2
    assert [record.getMessage() for record in caplog.records] == [
        "a tracker failed and is disabled"
    ]
    facts = vars(caplog.records[0])
    assert (facts["tracker"], facts["call"]) == ("Broken", "log")
    assert facts["problem"] == "OSError('disk full')"
    assert facts["exc_info"][1].args == ("disk full",)  # with its traceback


def test_wandb_runs_offline_without_an_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb-home"))
    run = WandbRun(project="tests", name="a run", folder=tmp_path / "summary")

    tracker = WandbTracker(run, {"lr": 0.5})
    tracker.log(1, {"loss": 0.5})
    tracker.log(1, {"valid_loss": 0.75})
    lacks_from = tracker.lacks_from
    tracker.close()

    assert lacks_from is None  # nothing was sent before
    assert tracker.run_id
    assert list(tmp_path.rglob("run-*.wandb"))
