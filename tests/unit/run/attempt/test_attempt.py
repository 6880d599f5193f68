"""Steps of one start that can be looked at alone."""

from __future__ import annotations

import logging
from argparse import Namespace
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.checkpoint.layout import CheckpointRef
from app.config.schema.data import DataConfig
from app.data.quarantine import Quarantine
from app.distributed.groups import ProcessGroups
from app.run.attempt.attempt import Attempt, Seams
from app.run.attempt.data import frames_per_second
from app.telemetry.logging import LogContext
from app.telemetry.metrics import Trackers
from app.telemetry.timing import PartTimes
from app.training.forward import forward_step
from app.training.loop import LoopState, LoopTools
from app.training.signals import StopFlag
from app.training.step import DiffusionModel
from tests.support.configs import TINY, load_trainable
from tests.support.numbered_clips import REGISTRATION, NumberedClips
from tests.unit.run.folders import read_json, run_folder

NUMBERED = ("--register", REGISTRATION, "data.target=numbered", "data.params=null")
NOTHING: Any = None


def attempt(groups: ProcessGroups, root: Path, *words: str) -> Attempt:
    config = load_trainable(*TINY, *words)
    context = LogContext(rank=0)
    return Attempt(Namespace(), config, groups, run_folder(root), root, context, StopFlag())


def seams(**replaced: Any) -> Seams:
    plain: dict[str, Any] = {"create_dataset": None, "collate_fn": None}
    return Seams(DiffusionModel, forward_step, **{**plain, **replaced})


def create(path: str, args: Namespace) -> NumberedClips:
    return NumberedClips(path, 10)


# data


def test_epochs_become_steps_once_the_data_is_counted(
    groups: ProcessGroups, tmp_path: Path
) -> None:
    words = ("--epochs", "3", "args.train_iters=null", "--batch-size", "2", "--num-workers", "0")
    made = attempt(groups, tmp_path, *words, "--gradient-accumulation-steps", "1")

    with made.loader(seams(create_dataset=create)) as loader:
        training = made.resolved(loader)

    assert training.steps == 15
    assert made.plan(training).samples_per_step == 2


def test_batches_go_on_at_the_step_of_the_state(groups: ProcessGroups, tmp_path: Path) -> None:
    made = attempt(groups, tmp_path, "--num-workers", "0")

    with made.loader(seams(create_dataset=create)) as loader:
        first = next(made.batches(loader, LoopState()))
        later = next(made.batches(loader, LoopState(step=3)))

    assert first["positions"] == [0, 1]
    assert later["positions"] == [12, 13]  # two micro-batches of two samples a step


@pytest.mark.parametrize(
    ("words", "position"),
    [((), 0), (("--resume-dataloader",), 12), (("--sample-order", "epoch"), 12)],
)
def test_upstreams_data_start_again_unless_resume_dataloader_is_given(
    words: tuple[str, ...], position: int, groups: ProcessGroups, tmp_path: Path
) -> None:
    made = attempt(groups, tmp_path, "--compat", "sat", "--num-workers", "0", *words)

    with made.loader(seams(create_dataset=create)) as loader:
        batch = next(made.batches(loader, LoopState(step=3)))

    assert batch["positions"][0] == position


def test_the_callers_collate_makes_the_batches(groups: ProcessGroups, tmp_path: Path) -> None:
    made = attempt(groups, tmp_path, "--num-workers", "0")
    mine = seams(create_dataset=create, collate_fn=lambda items: {"mine": len(items)})

    with made.loader(mine) as loader:
        batch = next(loader.batches())

    assert batch["mine"] == 2


@pytest.mark.parametrize(
    ("words", "fps"),
    [
        ((), 8.0),
        (("data.params.fps=16",), 16.0),
        ((*NUMBERED, "data.params={count: 3, fps: 12}"), 12.0),
        ((*NUMBERED, "data.params={count: 3}"), 8.0),
    ],
)
def test_videos_have_the_frame_rate_of_the_clips(words: tuple[str, ...], fps: float) -> None:
    data = load_trainable(*TINY, *words).data

    assert isinstance(data, DataConfig)
    assert frames_per_second(data) == fps


# validation


@pytest.mark.parametrize("words", [("args.valid_data=null",), ("args.eval_interval=null",)])
def test_there_is_no_validation_without_data_or_interval(
    words: tuple[str, ...], groups: ProcessGroups, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        made = attempt(groups, tmp_path, *words).evaluator(seams(), NOTHING, NOTHING, stack)

    assert made is None


def test_validation_reads_the_callers_dataset_and_collates_as_the_caller_does(
    groups: ProcessGroups, tmp_path: Path
) -> None:
    def collate(items: Any) -> dict[str, Any]:
        return {"mine": len(items)}

    with ExitStack() as stack:
        mine = seams(create_dataset=create, collate_fn=collate)
        made = attempt(groups, tmp_path).evaluator(mine, NOTHING, NOTHING, stack)

        assert made is not None
        item = made.source.read(4, 4)

    assert item["key"].endswith("valid/4")
    assert made.collate is collate


@pytest.mark.parametrize("order", ["epoch", "sat"])
def test_validation_takes_the_first_samples_whatever_the_order_of_training(
    order: str, groups: ProcessGroups, tmp_path: Path
) -> None:
    trained = attempt(groups, tmp_path, "--sample-order", order)
    with ExitStack() as stack:
        made = trained.evaluator(seams(create_dataset=create), NOTHING, NOTHING, stack)

        assert made is not None
        keys = [made.source.read(index, index)["key"] for index in range(4)]

    assert [Path(key).name for key in keys] == ["0", "1", "2", "3"]


# around the steps


class Memory:
    """Keeps the numbers that it is given."""

    def __init__(self) -> None:
        self.records: list[tuple[int, dict[str, float]]] = []

    def log(self, step: int, values: Any) -> None:
        self.records.append((step, dict(values)))

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.mark.parametrize("validates", [True, False])
def test_the_end_marks_the_run_as_finished(
    validates: bool, groups: ProcessGroups, tmp_path: Path
) -> None:
    made, memory = attempt(groups, tmp_path), Memory()
    tools = LoopTools(trackers=Trackers([memory]))
    evaluate: Any = (lambda state: {"valid_loss": 0.5}) if validates else None

    made.finish(LoopState(step=60), made.plan(made.config.training), evaluate, tools)

    assert memory.records == ([(60, {"valid_loss": 0.5})] if validates else [])
    assert read_json(tmp_path, "complete.json")["step"] == 60
    progress = read_json(tmp_path, "progress.json")
    assert (progress["state"], progress["step"]) == ("finished", 60)


@pytest.mark.parametrize("was_done", [True, False])
def test_a_validation_that_a_kill_took_is_made_up_once(
    was_done: bool, groups: ProcessGroups, tmp_path: Path
) -> None:
    made, memory, noted = attempt(groups, tmp_path), Memory(), []
    made = replace(made, run=run_folder(tmp_path, attempt=2, newest=CheckpointRef(1, 30)))
    if was_done:
        line = b'{"step": 30, "valid_loss": 0.25}\n'
        made.run.storage.write_small("metrics/000001-000007.jsonl", line)
    saver: Any = SimpleNamespace(note_validation=lambda step, numbers: noted.append(numbers))
    evaluate: Any = lambda state: {"valid_loss": 0.5}  # noqa: E731

    made.make_up(evaluate, saver, LoopState(step=30), LoopTools(trackers=Trackers([memory])))

    assert memory.records == ([] if was_done else [(30, {"valid_loss": 0.5})])
    assert noted == [{"valid_loss": 0.25 if was_done else 0.5}]


def test_numbers_of_a_validation_are_returned_and_the_best_remembered(
    groups: ProcessGroups, tmp_path: Path
) -> None:
    made, noted = attempt(groups, tmp_path), []
    saver: Any = SimpleNamespace(
        save=None,
        note_validation=lambda step, numbers: noted.append((step, numbers)),
        loader=SimpleNamespace(quarantine=Quarantine(), source=SimpleNamespace(left_out=list)),
    )
    evaluate: Any = lambda state: {"valid_loss": 0.5}  # noqa: E731

    with ExitStack() as stack:
        hooks = made.hooks(NOTHING, saver, evaluate, 60, stack)
        without = made.hooks(NOTHING, saver, None, 60, stack)

    assert hooks.evaluate(LoopState(step=4)) == {"valid_loss": 0.5}
    assert noted == [(4, {"valid_loss": 0.5})]
    assert without.evaluate(LoopState(step=4)) is None


def test_log_lines_rewrite_progress(groups: ProcessGroups, tmp_path: Path) -> None:
    made = attempt(groups, tmp_path)
    loader = SimpleNamespace(quarantine=Quarantine(), source=SimpleNamespace(left_out=list))
    saver: Any = SimpleNamespace(save=None, note_validation=None, loader=loader)

    with ExitStack() as stack:
        hooks = made.hooks(NOTHING, saver, None, 60, stack)
        hooks.on_log(LoopState(step=5), {"loss": 0.25})

    progress = read_json(tmp_path, "progress.json")
    assert (progress["state"], progress["step"], progress["loss"]) == ("running", 5, 0.25)


def test_other_ranks_write_no_progress_and_have_no_trackers(
    groups: ProcessGroups, tmp_path: Path
) -> None:
    second = replace(groups, rank=replace(groups.rank, rank=1, world_size=2))
    made = attempt(second, tmp_path)
    loader = SimpleNamespace(quarantine=Quarantine(), source=SimpleNamespace(left_out=list))
    saver: Any = SimpleNamespace(save=None, note_validation=None, loader=loader)

    with ExitStack() as stack:
        made.hooks(NOTHING, saver, None, 60, stack).on_log(LoopState(step=5), {"loss": 0.25})
        tools, wandb_run_id = made.tools(PartTimes(), made.config.training, LoopState(), None)
        tools.trackers.log(1, {"loss": 1.0})
        tools.trackers.close()

    assert wandb_run_id() is None
    assert list(tmp_path.iterdir()) == []


def test_a_step_function_gets_the_step_the_batches_and_the_timers(
    groups: ProcessGroups, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made, times, seen = attempt(groups, tmp_path), PartTimes(), []

    def step(batches: Any, model: Any, args: Namespace, timers: PartTimes) -> str:
        seen.append((next(batches)["keys"], model, args.iteration, timers is times))
        return "loss"

    batches = iter([{"positions": [0], "keys": ["a"]}, {"positions": [1], "keys": ["b"]}])
    model: Any = "model"
    with caplog.at_level(logging.DEBUG, logger="app.run.attempt.attempt"):
        call = made.micro_step(step, model, batches, times)
        answers = [call(8), call(9)]

    assert answers == ["loss", "loss"]
    assert seen == [(["a"], "model", 8, True), (["b"], "model", 9, True)]
    assert [record.samples for record in caplog.records] == [["a"], ["b"]]  # type: ignore[attr-defined]


def test_plan_takes_lengths_and_intervals_from_the_configuration(
    groups: ProcessGroups, tmp_path: Path
) -> None:
    words = ("--save-interval", "7", "--eval-interval", "6", "--exit-interval", "5")
    made = attempt(groups, tmp_path, *words, "--log-interval", "4")

    plan = made.plan(made.config.training)

    assert (plan.steps, plan.accumulation, plan.samples_per_step) == (60, 2, 4)
    assert (plan.save_interval, plan.eval_interval, plan.exit_interval) == (7, 6, 5)
    assert (plan.log_interval, plan.schedule.steps) == (4, 60)
