"""What a run reports."""

from __future__ import annotations

import json
import math
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from app.checkpoint.layout import CheckpointRef
from app.errors import RetryableError
from app.run.attempt import reporting
from app.run.attempt.reporting import (
    make_trackers,
    save_arguments,
    upload_log,
    write_end,
    write_progress,
)
from app.storage.local import LocalStorage
from app.telemetry.metrics import (
    JsonlTracker,
    ProgressTracker,
    TensorBoardTracker,
    Tracker,
    Trackers,
)
from app.training.loop import LoopState
from tests.support.configs import TINY, load_trainable
from tests.unit.run.folders import read_json, run_folder

STATE = LoopState(step=7)
FACTS = {
    "loss": 0.5,
    "lr": 1e-4,
    "samples_per_s": 2.0,
    "eta_s": 60.0,
    "bad_samples": 3,
    "data_s": 0.1,
}


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage that does not answer."""

    def refuse(self: LocalStorage, *_: object) -> None:
        raise RetryableError("no answer", where="here", fix="wait")

    monkeypatch.setattr(LocalStorage, "write_small", refuse)
    monkeypatch.setattr(LocalStorage, "upload", refuse)


def test_progress_says_where_the_run_is(tmp_path: Path) -> None:
    write_progress(run_folder(tmp_path, attempt=3), STATE, 60, FACTS, "running")

    assert read_json(tmp_path, "progress.json") == {
        "format_version": 1,
        "state": "running",
        "step": 7,
        "steps": 60,
        "attempt": 3,
        "loss": 0.5,
        "lr": 1e-4,
        "samples_per_s": 2.0,
        "eta_s": 60.0,
        "bad_samples": 3,
    }


def test_numbers_that_are_none_are_null_in_progress(tmp_path: Path) -> None:
    facts = {"loss": math.nan, "samples_per_s": math.inf}

    write_progress(run_folder(tmp_path), STATE, 60, facts, "running")

    progress = read_json(tmp_path, "progress.json")
    assert [progress[name] for name in ("loss", "samples_per_s", "eta_s")] == [None, None, None]


@pytest.mark.usefixtures("silent")
def test_a_storage_that_does_not_answer_costs_freshness_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = tmp_path / "log.txt"
    log.write_text("line\n")

    write_progress(run_folder(tmp_path), STATE, 60, FACTS, "running")
    upload_log(run_folder(tmp_path), 0, log)

    told = [(record.levelname, record.message) for record in caplog.records]
    assert told == [
        ("WARNING", "progress.json was not written"),
        ("WARNING", "the log was not uploaded"),
    ]


@pytest.mark.parametrize("before", [None, b"", b"[1]", b'{"step": 7', b"\xff"])
def test_how_a_start_ended_is_written_whatever_progress_json_holds(
    before: bytes | None, tmp_path: Path
) -> None:
    run = run_folder(tmp_path / "run", attempt=2)
    if before is not None:
        run.storage.write_small("progress.json", before)

    write_end(run, "failed", "nothing lies at s3://a?X-Amz-Signature=hunter22")

    assert read_json(tmp_path, "run/progress.json") == {
        "format_version": 1,
        "attempt": 2,
        "state": "failed",
        "cause": "nothing lies at s3://a?X-Amz-Signature=***",
    }


def test_how_far_the_run_is_stays_and_a_later_start_is_left_alone(tmp_path: Path) -> None:
    first, second = (run_folder(tmp_path / "run", attempt=number) for number in (1, 2))
    write_progress(first, LoopState(step=7), 60, {"loss": 0.5}, "running")

    write_end(second, "interrupted", "stopped by SIGINT after step 7")

    found = read_json(tmp_path, "run/progress.json")
    assert (found["state"], found["step"], found["loss"]) == ("interrupted", 7, 0.5)
    write_end(first, "failed", "lost")
    assert read_json(tmp_path, "run/progress.json") == found


def test_the_log_of_a_rank_lies_under_its_attempt(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("line\n")

    upload_log(run_folder(tmp_path / "run", attempt=2), 5, log)
    upload_log(run_folder(tmp_path / "run", attempt=2), 6, tmp_path / "nothing.txt")

    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert [path.relative_to(tmp_path / "run").as_posix() for path in files] == [
        "logs/000002-r0005.txt"
    ]
    assert files[0].read_text() == "line\n"


def test_saved_arguments_are_all_there_with_secrets_masked(tmp_path: Path) -> None:
    config = load_trainable(*TINY, "--load", "s3://a?X-Amz-Signature=hunter22", "--run-id", "b")

    save_arguments(Namespace(summary_dir=str(tmp_path)), config)

    text = (tmp_path / "runs/b.txt").read_text()
    values = dict(line.split(": ", 1) for line in text.splitlines())
    assert set(values) == set(config.arguments)
    assert values["train_iters"] == "60"
    assert "hunter22" not in text


def kinds(trackers: Trackers) -> set[type[Tracker]]:
    return {type(tracker) for tracker in trackers._trackers}


def made(tmp_path: Path, *words: str, terminal: bool = False) -> Trackers:
    trackers, wandb_run_id = make_trackers(
        load_trainable(*TINY, "--run-id", "b", *words),
        run_folder(tmp_path / "run"),
        60,
        first_step=0,
        wandb_run_id=None,
        show=(lambda text: None) if terminal else None,
    )
    assert wandb_run_id() is None
    return trackers


def test_numbers_go_to_the_runs_folder(tmp_path: Path) -> None:
    trackers = made(tmp_path)
    trackers.log(1, {"loss": 0.25})
    trackers.close()

    assert kinds(trackers) == {JsonlTracker}
    line = (tmp_path / "run/metrics/000001-000000.jsonl").read_text()
    assert json.loads(line) == {"step": 1, "loss": 0.25}


def test_a_terminal_gets_a_progress_line_and_a_summary_folder_tensorboard(
    tmp_path: Path,
) -> None:
    trackers = made(tmp_path, "--summary-dir", str(tmp_path / "s"), terminal=True)
    trackers.close()

    assert kinds(trackers) == {JsonlTracker, ProgressTracker, TensorBoardTracker}
    assert list((tmp_path / "s/runs/b").glob("events.out.tfevents.*"))


@dataclass
class FakeWandb:
    """A W&B run that has the steps before `lacks_from`."""

    lacks_from: int | None
    run_id: str = "w1"
    taken: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    def log(self, step: int, values: dict[str, float]) -> None:
        self.taken.append((step, values))


@pytest.mark.parametrize(
    ("lacks_from", "sent"),
    [(2, [(2, {"loss": 0.5}), (3, {"loss": 0.25})]), (4, []), (None, [])],
)
def test_wandb_gets_the_steps_that_a_killed_start_did_not_send(
    lacks_from: int | None,
    sent: list[tuple[int, dict[str, float]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = FakeWandb(lacks_from)
    monkeypatch.setattr(reporting, "WandbTracker", lambda run, config: fake)
    run = run_folder(tmp_path / "run", attempt=2, newest=CheckpointRef(1, 3))
    lines = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}, {"step": 3, "loss": 0.25}]
    text = "".join(json.dumps(line) + "\n" for line in [*lines, {"step": 4, "loss": 9.0}])
    run.storage.write_small("metrics/000001-000000.jsonl", text.encode())

    make_trackers(
        load_trainable(*TINY, "--run-id", "b", "--wandb"),
        run,
        60,
        first_step=3,
        wandb_run_id="w1",
        show=None,
    )

    assert fake.taken == sent
