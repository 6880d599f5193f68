"""What a start continues: never step 0 by accident, and a request once."""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from app.checkpoint.attempts import begin_attempt, note_resumed
from app.checkpoint.catalog import find_newest, run_checkpoint
from app.config.schema.run import TrainableRun
from app.distributed.groups import process_groups
from app.distributed.rank import RankInfo
from app.errors import CheckpointError, CogvxError, ConfigError, InputMissingError
from app.run.attempt.folder import RunFolder, close_attempt, finish_run, open_run
from app.run.attempt.reporting import write_progress
from app.storage.local import LocalStorage
from app.training.loop import LoopState
from tests.support.checkpoints import save
from tests.support.configs import TINY, load_trainable
from tests.unit.run.folders import WORLD, read_json


@pytest.fixture(scope="module", autouse=True)
def group() -> Iterator[None]:
    """One process group of one for all tests here."""
    before = dict(os.environ)
    with process_groups(RankInfo.from_environment({}), device=torch.device("cpu")):
        yield
    os.environ.clear()
    os.environ.update(before)


FIRST, SECOND = "step-0000000010.000001", "step-0000000020.000001"


@functools.cache
def loaded(*words: str) -> TrainableRun:
    return load_trainable(*TINY, "--run-id", "a", *words)


def config_in(root: Path, *words: str) -> TrainableRun:
    """A configuration whose runs are below `root`; each one is read once."""
    return replace(loaded(*words), runs_url=str(root))


def start(root: Path, *words: str) -> RunFolder | None:
    return open_run(config_in(root, *words), 0, WORLD)


def resumed(root: Path, *words: str) -> str | None:
    run = start(root, *words)
    assert run is not None
    return run.newest.name if run.newest else None


def files(root: Path) -> dict[str, bytes]:
    found = (path for path in (root / "a").rglob("*") if path.is_file())
    return {path.relative_to(root / "a").as_posix(): path.read_bytes() for path in found}


def saved(root: Path, step: int, attempt: int) -> None:
    save(LocalStorage(root / "a"), root / "scratch", step=step, attempt=attempt)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with checkpoints at steps 10 and 20 of its first attempt."""
    start(tmp_path)
    for step in (10, 20):
        saved(tmp_path, step, 1)
    return tmp_path


def refused(root: Path, *words: str) -> CogvxError:
    """The error of a start, which writes nothing."""
    before = files(root)
    with pytest.raises(CogvxError) as caught:
        start(root, *words)
    assert files(root) == before
    return caught.value


# checkpoints that cannot be used


def other_format(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 2}))


def one_byte_short(folder: Path) -> None:
    path = folder / "weights-00000-of-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def without_weights(folder: Path) -> None:
    (folder / "weights-00000-of-00001.safetensors").unlink()


def unfinished(folder: Path) -> None:
    (folder / "manifest.json").unlink()


Damage = Callable[[Path], None]


@pytest.mark.parametrize("damage", [other_format, one_byte_short, without_weights])
def test_a_run_whose_checkpoints_are_all_unusable_is_refused_and_not_begun_again(
    damage: Damage, run: Path
) -> None:
    whole = files(run)
    for name in (FIRST, SECOND):
        damage(run / "a/checkpoints" / name)

    error = refused(run)

    assert isinstance(error, CheckpointError)
    assert error.exit_code == 65
    assert SECOND in error.what
    assert "--restart" in error.fix
    for name, content in whole.items():
        (run / "a" / name).write_bytes(content)
    assert resumed(run) == SECOND


@pytest.mark.parametrize("damage", [one_byte_short, without_weights])
def test_every_unusable_checkpoint_is_named(damage: Damage, run: Path) -> None:
    for name in (FIRST, SECOND):
        damage(run / "a/checkpoints" / name)

    error = refused(run)

    assert FIRST in error.what
    assert SECOND in error.what


def test_a_newer_checkpoint_of_another_format_is_an_error_that_names_the_older(run: Path) -> None:
    other_format(run / "a/checkpoints" / SECOND)

    error = refused(run)

    assert (error.exit_code, "its format is 2" in error.what) == (65, True)
    assert f"--resume-from NAME: {FIRST}" in error.fix
    assert "version of cogvx-train that wrote it" in error.fix


def test_an_older_one_of_another_format_does_not_matter(run: Path) -> None:
    other_format(run / "a/checkpoints" / FIRST)

    assert resumed(run) == SECOND


@pytest.mark.parametrize("damage", [one_byte_short, without_weights])
def test_one_that_lost_a_file_is_passed_over_with_a_warning_that_says_why(
    damage: Damage, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage(run / "a/checkpoints" / SECOND)

    assert resumed(run) == FIRST
    [warning] = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert f"checkpoint {SECOND} is damaged and passed over: weights-" in warning


def test_saves_that_were_never_finished_do_not_keep_a_run_from_starting(run: Path) -> None:
    for name in (FIRST, SECOND):
        unfinished(run / "a/checkpoints" / name)

    assert resumed(run) is None


def test_checkpoints_beside_a_newest_start_from_step_0_are_an_error(run: Path) -> None:
    storage = LocalStorage(run / "a")
    note_resumed(storage, begin_attempt(storage, WORLD), None)  # disowned both

    error = refused(run)

    assert error.exit_code == 65
    assert f"--resume-from NAME: {SECOND}, {FIRST}" in error.fix
    assert resumed(run, "--resume-from", SECOND) == SECOND


def test_an_attempt_that_resumed_from_nonsense_is_an_error(run: Path) -> None:
    (path,) = (run / "a/attempts").iterdir()
    path.write_text(json.dumps({**json.loads(path.read_text()), "resumed_from": "step-20"}))

    error = refused(run)

    assert (error.exit_code, error.where) == (65, str(path))
    assert "'step-20', not the name of a checkpoint" in error.what


# requests


def test_a_restart_begins_at_step_0_and_is_done_once(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    assert resumed(run, "--restart") is None
    assert resumed(run, "--restart") is None  # killed before its first save
    saved(run, 5, 3)
    assert resumed(run, "--restart") == "step-0000000005.000003"
    assert resumed(run) == "step-0000000005.000003"

    said = [one for one in caplog.records if one.getMessage().startswith("the request was met")]
    assert len(said) == 2
    assert [path.name[:6] for path in sorted((run / "a/attempts").iterdir())][-1] == "000005"


def test_after_a_restart_without_a_checkpoint_an_ordinary_start_begins_at_step_0_too(
    run: Path,
) -> None:
    assert resumed(run, "--restart") is None
    assert resumed(run) is None
    assert resumed(run) is None


@pytest.mark.parametrize("wanted", ["10", FIRST])
def test_resume_from_goes_back_and_is_done_once(wanted: str, run: Path) -> None:
    assert resumed(run, "--resume-from", wanted) == FIRST
    saved(run, 15, 2)
    assert resumed(run, "--resume-from", wanted) == "step-0000000015.000002"
    assert resumed(run) == "step-0000000015.000002"
    assert resumed(run, "--resume-from", SECOND) == SECOND  # another request


def test_a_fork_that_was_asked_for_is_the_line_from_then_on(run: Path) -> None:
    resumed(run, "--resume-from", "10")
    saved(run, 15, 2)

    assert resumed(run, "--resume-from", "20") == SECOND

    assert resumed(run) == SECOND


def test_a_checkpoint_that_is_not_there_is_named_with_those_that_are(run: Path) -> None:
    error = refused(run, "--resume-from", "30")

    assert isinstance(error, InputMissingError)
    assert error.fix == f"name one of {SECOND}, {FIRST}"


def test_a_requested_checkpoint_that_is_damaged_is_an_error(run: Path) -> None:
    one_byte_short(run / "a/checkpoints" / FIRST)

    error = refused(run, "--resume-from", "10")

    assert error.exit_code == 65
    assert f"--resume-from NAME: {SECOND}" in error.fix


def test_two_requests_contradict_each_other(run: Path) -> None:
    assert isinstance(refused(run, "--restart", "--resume-from", "10"), ConfigError)


# finished runs


def finished(root: Path) -> Path:
    run = start(root)
    assert run is not None
    saved(root, 60, run.attempt.number)
    finish_run(run, 60)
    close_attempt(run, "finished after step 60")
    return root


def test_the_same_job_again_says_where_the_run_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    finished(tmp_path)
    caplog.set_level(logging.INFO)

    assert start(tmp_path, "--log-interval", "7", "--num-workers", "3", "--zero-stage", "1") is None

    [record] = [one for one in caplog.records if "finished already" in one.getMessage()]
    assert record.__dict__["url"] == str(tmp_path / "a")


def test_a_larger_length_continues_and_is_no_longer_finished(tmp_path: Path) -> None:
    finished(tmp_path)

    assert resumed(tmp_path, "--train-iters", "90") == "step-0000000060.000001"
    assert not (tmp_path / "a/complete.json").exists()
    assert resumed(tmp_path, "--train-iters", "90") == "step-0000000060.000001"


def test_the_end_does_not_count_once_a_later_attempt_began(tmp_path: Path) -> None:
    finished(tmp_path)
    end = (tmp_path / "a/complete.json").read_bytes()
    resumed(tmp_path, "--train-iters", "90")
    (tmp_path / "a/complete.json").write_bytes(end)  # killed before it was deleted
    saved(tmp_path, 70, 2)

    assert resumed(tmp_path, "--train-iters", "90") == "step-0000000070.000002"
    assert not (tmp_path / "a/complete.json").exists()


@pytest.mark.parametrize("length", ["--train-iters", "args.train_iters="])
def test_a_length_below_the_step_reached_is_an_error(length: str, tmp_path: Path) -> None:
    words = (length, "30") if length.startswith("--") else (f"{length}30",)
    finished(tmp_path)
    error = refused(tmp_path, *words)
    assert (error.exit_code, "30 steps, and the run has done 60" in error.what) == (78, True)

    (tmp_path / "a/complete.json").unlink()
    error = refused(tmp_path, *words)
    assert (error.exit_code, "30 steps, and the run has done 60" in error.what) == (78, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("args.train_data=[other]",), "args.train_data: ['tiny/shards/train'] -> ['other']"),
        (("--lr", "0.5"), "args.lr: 0.002 -> 0.5"),
        (("--batch-size", "4"), "samples of a step: 4 -> 8"),
        (("data.params.fps=4",), "data.params.fps: 8 -> 4"),
    ],
)
def test_another_job_in_the_folder_of_a_finished_one_is_refused_with_the_difference(
    words: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    world = {"world_size": 1, "micro_batch": 2, "accumulation": 2}
    run = open_run(config_in(tmp_path), 0, world)
    assert run is not None
    finish_run(run, 60)
    other = config_in(tmp_path, *words)
    before = files(tmp_path)

    with pytest.raises(ConfigError) as caught:
        open_run(other, 0, {**world, "micro_batch": other.training.micro_batch})

    assert said in caught.value.what
    assert "--run-id" in caught.value.fix
    assert "--restart" in caught.value.fix
    assert files(tmp_path) == before


def test_a_finished_run_begins_again_on_request(tmp_path: Path) -> None:
    finished(tmp_path)

    assert resumed(tmp_path, "--restart", "--lr", "0.5") is None
    assert not (tmp_path / "a/complete.json").exists()
    run = start(tmp_path, "--restart", "--lr", "0.5")
    assert run is not None
    finish_run(run, 60)
    # Its pod was lost before it could end: the request is met, the run done.
    assert start(tmp_path, "--restart", "--lr", "0.5") is None
    close_attempt(run, "finished after step 60")
    assert resumed(tmp_path, "--restart", "--lr", "0.5") is None  # somebody asks anew


def test_a_run_that_went_on_from_a_checkpoint_and_finished_is_done(run: Path) -> None:
    going_on = start(run, "--resume-from", "10")
    assert going_on is not None
    finish_run(going_on, 60)
    close_attempt(going_on, "finished after step 60")

    assert start(run, "--resume-from", "10") is None
    assert resumed(run, "--resume-from", "20") == SECOND


def test_an_end_of_an_earlier_version_still_counts(tmp_path: Path) -> None:
    start(tmp_path)
    saved(tmp_path, 60, 1)
    (tmp_path / "a/complete.json").write_text(
        '{"format_version": 1, "step": 60, "version": "0.1.0"}'
    )

    assert start(tmp_path) is None
    assert refused(tmp_path, "--lr", "0.5").exit_code == 78
    assert resumed(tmp_path, "--train-iters", "90") == "step-0000000060.000001"


# two trainers in one folder


def test_the_run_is_what_the_one_that_finished_wrote(tmp_path: Path) -> None:
    first, second = start(tmp_path), start(tmp_path)
    assert first is not None
    assert second is not None
    for step in (10, 20, 60):
        saved(tmp_path, step, 1)
    saved(tmp_path, 30, 2)  # the loser, half way
    finish_run(first, 60)

    storage = LocalStorage(tmp_path / "a")
    found = run_checkpoint(storage)

    assert found is not None
    assert found.name == "step-0000000060.000001"
    newest = find_newest(storage)
    assert newest is not None
    assert newest.attempt == 2
    assert start(tmp_path) is None
    assert resumed(tmp_path, "--train-iters", "90") == "step-0000000060.000001"


# damaged files


def truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


def other_types(data: bytes) -> bytes:
    found = {k: v if k == "format_version" else [v] for k, v in json.loads(data).items()}
    return json.dumps(found).encode()


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "truncated": truncate,
    "flipped": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "not utf-8": lambda data: b"\xff\xfe" + data,
    "a list": lambda data: b"[]",
    "null": lambda data: b"null",
    "a number": lambda data: b"7",
    "deep": lambda data: b"[" * 100_000,
    "other types": other_types,
    "other version": lambda data: json.dumps({**json.loads(data), "format_version": 9}).encode(),
    "nothing": lambda data: b"{}",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["run.json", "complete.json", "attempts/*.json"])
def test_a_damaged_file_of_the_run_is_an_error_with_the_file_and_the_ways_on(
    name: str, damage: str, tmp_path: Path
) -> None:
    finished(tmp_path)
    (path,) = (tmp_path / "a").glob(name)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))

    error = refused(tmp_path)

    assert (error.exit_code, error.where) == (65, str(path))
    way_on = "--resume-from" if damage != "other version" else "the version of cogvx-train"
    assert way_on in error.fix
    assert resumed(tmp_path, "--resume-from", "60") == "step-0000000060.000001"
    assert resumed(tmp_path) == "step-0000000060.000001"  # nothing damaged is left


@pytest.mark.parametrize("damage", DAMAGES)
def test_progress_json_is_for_people_and_its_damage_keeps_nobody_from_starting(
    damage: str, run: Path
) -> None:
    folder: Any = start(run)
    write_progress(folder, LoopState(step=20), 60, {}, "running")
    path = run / "a/progress.json"
    path.write_bytes(DAMAGES[damage](path.read_bytes()))

    assert resumed(run) == SECOND


def test_a_request_that_was_met_gets_over_an_older_damaged_record(run: Path) -> None:
    assert resumed(run, "--restart") is None
    (first,) = (run / "a/attempts").glob("000001-*.json")
    first.write_bytes(b"[]")

    assert refused(run).where == str(first)
    assert resumed(run, "--restart") is None
    assert resumed(run) is None  # it is gone


def test_a_request_is_kept_in_the_record(run: Path) -> None:
    start(run, "--resume-from", "10")

    record = read_json(run, "a/attempts/000002-*.json")
    assert (record["request"], record["resumed_from"]) == ("resume-from 10", FIRST)
