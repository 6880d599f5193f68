"""One start from the outside: what is recorded whatever happens inside."""

from __future__ import annotations

import json
import logging
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from app.cli import train as command
from app.cli.main import main
from app.config import load as load_module
from app.config import runnable
from app.distributed.groups import ProcessGroups
from app.errors import ConfigError, DataError, PreemptedError
from app.run import train as module
from app.run.attempt.attempt import Attempt, Seams
from app.run.attempt.folder import finish_run
from app.run.train import SATVideoDiffusionEngine, training_main, world_sizes
from app.training.forward import forward_step
from app.training.step import DiffusionModel
from tests.support.configs import TINY, load
from tests.support.numbered_clips import NumberedClips
from tests.unit.run.folders import read_json

Start = Callable[..., int]
CUT = DataError("a shard is cut", where="a.tar", fix="upload it again")


@pytest.fixture
def start(groups: ProcessGroups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """`training_main` whose inside is `inside(attempt, seams)`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(inside: Callable[[Attempt, Seams], str], *words: str, **seams: Any) -> int:
        def train(self: Attempt, given: Seams, init: object) -> str:
            return inside(self, given)

        monkeypatch.setattr(Attempt, "train", train)
        config = load(*TINY, "--save", str(tmp_path / "runs"), "--run-id", "a", *words)
        args = Namespace(run_config=config, groups=groups)
        return training_main(args, DiffusionModel, forward_step, **seams)

    return run


def raising(problem: BaseException) -> Callable[[Attempt, Seams], str]:
    def inside(attempt: Attempt, seams: Seams) -> str:
        raise problem

    return inside


def test_the_end_of_a_start_is_recorded_and_its_log_kept(start: Start, tmp_path: Path) -> None:
    def inside(attempt: Attempt, seams: Seams) -> str:
        logging.getLogger("app.test").info("inside", extra={"clips": 7})
        return "finished after step 60"

    assert start(inside) == 0

    attempt = read_json(tmp_path, "runs/a/attempts/*.json")
    assert attempt["cause"] == "finished after step 60"
    lines = (tmp_path / "runs/a/logs/000001-r0000.txt").read_text().splitlines()
    events = {line["event"]: line for line in map(json.loads, lines)}
    assert events["inside"]["clips"] == 7
    assert "attempt begun" in events


@pytest.mark.parametrize(
    ("problem", "cause", "state"),
    [
        (CUT, "a shard is cut", "failed"),
        (
            PreemptedError("stopped by SIGTERM", where="step 3", fix="start again"),
            "stopped by",
            "interrupted",
        ),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError('division by zero')", "failed"),
        (KeyboardInterrupt(), "KeyboardInterrupt()", "interrupted"),
    ],
)
def test_whatever_ends_a_start_is_its_cause_and_passes_on(
    problem: BaseException, cause: str, state: str, start: Start, tmp_path: Path
) -> None:
    with pytest.raises(type(problem)):
        start(raising(problem))

    assert cause in read_json(tmp_path, "runs/a/attempts/*.json")["cause"]
    progress = read_json(tmp_path, "runs/a/progress.json")
    assert progress["state"] == state
    assert cause in progress["cause"]
    assert (tmp_path / "runs/a/logs/000001-r0000.txt").exists()


def test_a_finished_run_is_0_at_once(start: Start, tmp_path: Path) -> None:
    def inside(attempt: Attempt, seams: Seams) -> str:
        finish_run(attempt.run, 60)
        return "finished"

    start(inside)

    assert start(raising(AssertionError("it ran"))) == 0
    assert len(list((tmp_path / "runs/a/attempts").iterdir())) == 1


def test_each_start_is_an_attempt_of_its_own(start: Start, tmp_path: Path) -> None:
    numbers: list[int] = []

    def inside(attempt: Attempt, seams: Seams) -> str:
        numbers.append(attempt.run.attempt.number)
        return "stopped"

    for _ in range(3):
        start(inside)

    assert numbers == [1, 2, 3]


def test_what_a_caller_replaces_is_handed_on(start: Start) -> None:
    given: list[Seams] = []

    def inside(attempt: Attempt, seams: Seams) -> str:
        given.append(seams)
        return "done"

    start(inside, create_dataset_function=len, collate_fn=max)

    assert given == [Seams(DiffusionModel, forward_step, len, max)]


def test_scratch_is_there_during_the_start_and_gone_after_it(start: Start) -> None:
    seen: list[Path] = []

    def inside(attempt: Attempt, seams: Seams) -> str:
        assert attempt.scratch.is_dir()
        seen.append(attempt.scratch)
        return "done"

    start(inside)

    assert not seen[0].exists()


@pytest.mark.parametrize(("words", "shown"), [((), False), (("--debug",), True)])
def test_debug_is_the_level_of_the_log(
    words: tuple[str, ...], shown: bool, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    def inside(attempt: Attempt, seams: Seams) -> str:
        logging.getLogger("app.test").debug("a detail")
        return "done"

    start(inside, *words)

    assert ("a detail" in capsys.readouterr().err) is shown


def test_a_configuration_that_cannot_run_is_refused_before_anything_is_written(
    start: Start, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="'train_data' is missing"):
        start(raising(AssertionError("it ran")), "args.train_data=null")

    assert not (tmp_path / "runs").exists()


def test_validation_without_data_is_a_warning(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    start(lambda attempt, seams: "done", "args.valid_data=null")

    assert "there is no valid_data: nothing is validated" in capsys.readouterr().err


def test_the_attempt_records_the_sizes_of_the_world(groups: ProcessGroups) -> None:
    words = ("--batch-size", "3", "--gradient-accumulation-steps", "5")

    assert world_sizes(load(*TINY, *words), groups) == {
        "world_size": 1,
        "nproc_per_node": 1,
        "micro_batch": 3,
        "accumulation": 5,
        "model_parallel_size": 1,
    }


def test_the_names_that_users_of_the_original_know_are_there() -> None:
    seams = ("training_main", "forward_step", "forward_step_eval", "broad_cast_batch")

    assert all(callable(getattr(module, name)) for name in (*seams, "get_args"))
    assert callable(module.process_config_to_args)
    for method in ("shared_step", "log_video"):
        assert callable(getattr(SATVideoDiffusionEngine, method))


def test_the_command_loads_and_checks_its_configuration_once(
    groups: ProcessGroups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def counted(where: ModuleType, name: str) -> None:
        real = getattr(where, name)

        def call(*args: Any, **named: Any) -> Any:
            calls.append(name)
            return real(*args, **named)

        monkeypatch.setattr(where, name, call)

    def join(args: Namespace) -> None:
        args.groups = groups

    counted(load_module, "merge_layers")
    counted(runnable, "_placeholders")
    monkeypatch.setattr(module, "prepare_process", lambda **how: None)
    monkeypatch.setattr(module, "start_distributed", join)
    monkeypatch.setattr(Attempt, "train", lambda self, seams, init: "finished after step 60")
    monkeypatch.setattr(command, "count_gpus", lambda environ: 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    assert main(["train", *TINY, "--save", str(tmp_path / "runs"), "--run-id", "a"]) == 0

    assert calls == ["merge_layers", "_placeholders"]


class EndingDataset(NumberedClips):
    """A user's dataset that ends the process when it is read, as if all were well."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        sys.exit(0)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_registered_dataset_that_ends_the_process_does_not_finish_the_run(
    workers: str, groups: ProcessGroups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def join(args: Namespace) -> None:
        args.groups = groups

    def read_a_batch(self: Attempt, seams: Seams, init: object) -> str:
        with self.loader(seams) as loader:
            next(loader.batches(0, 1))
        return "finished"

    monkeypatch.setattr(module, "prepare_process", lambda **how: None)
    monkeypatch.setattr(module, "start_distributed", join)
    monkeypatch.setattr(Attempt, "train", read_a_batch)
    monkeypatch.setattr(command, "count_gpus", lambda environ: 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COGVX_STATUS_FILE", str(tmp_path / "status"))
    monkeypatch.setenv("LOCAL_RANK", "0")
    registered = ("--register", f"ending={__name__}:EndingDataset", "data.target=ending")
    own = (*registered, "data.params={count: 8}", "--num-workers", workers, "args.valid_data=[]")

    code = main(["train", *TINY, *own, "--save", str(tmp_path / "runs"), "--run-id", "a"])

    assert code == 1
    cause = json.loads((tmp_path / "status.0").read_text())
    assert (cause["exit_code"], cause["what"]) == (1, "the work was ended by SystemExit(0)")
    assert "test_train.py" in cause["where"]
