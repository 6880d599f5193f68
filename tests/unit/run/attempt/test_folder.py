"""The run's folder: its identity, its attempts, what a start continues."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from app.distributed.agreement import on_rank_zero
from app.errors import ConfigError, ConfigErrors, RetryableError
from app.run.attempt.folder import RunFolder, close_attempt, finish_run, open_run
from app.storage.local import LocalStorage
from app.storage.objects import ObjectMissingError
from tests.distributed.rank_processes import outputs, run_processes
from tests.support.checkpoints import save
from tests.support.configs import TINY, load_trainable
from tests.unit.run.folders import WORLD, read_json

pytestmark = pytest.mark.usefixtures("groups")


def start(root: Path, *words: str) -> RunFolder | None:
    return open_run(load_trainable(*TINY, "--save", str(root), "--run-id", "a", *words), 0, WORLD)


def started(root: Path, *words: str) -> RunFolder:
    run = start(root, *words)
    assert run is not None
    return run


def test_a_first_start_writes_identity_attempt_and_configuration(tmp_path: Path) -> None:
    run = started(tmp_path)

    assert run.newest is None
    identity = read_json(tmp_path, "a/run.json")
    assert (identity["run_id"], identity["network"]["num_layers"]) == ("a", 2)
    attempt = read_json(tmp_path, "a/attempts/*.json")
    assert attempt["number"] == run.attempt.number == 1
    assert (attempt["decided"], attempt["resumed_from"], attempt["ended"]) == (True, None, None)
    assert attempt["world"] == WORLD
    (path,) = (tmp_path / "a/config").iterdir()
    assert path.name == f"000001-{run.attempt.owner}.yaml"
    assert yaml.safe_load(path.read_text())["args"]["train_iters"] == 60


def test_a_later_start_counts_on_and_continues_the_newest_checkpoint(tmp_path: Path) -> None:
    started(tmp_path)
    for step in (3, 6):
        save(LocalStorage(tmp_path / "a"), tmp_path / "scratch", step=step)

    run = started(tmp_path)

    assert run.attempt.number == 2
    assert run.newest is not None
    assert run.newest.name == "step-0000000006.000001"
    attempt = read_json(tmp_path, "a/attempts/000002-*.json")
    assert attempt["resumed_from"] == run.newest.name


def test_a_finished_run_begins_no_attempt(tmp_path: Path) -> None:
    finish_run(started(tmp_path), 60)

    assert start(tmp_path) is None

    assert read_json(tmp_path, "a/complete.json")["step"] == 60
    assert len(list((tmp_path / "a/attempts").iterdir())) == 1


def test_another_network_is_refused_with_the_key_and_both_values(tmp_path: Path) -> None:
    started(tmp_path)
    override = "model.network_config.params.time_embed_dim=64"

    with pytest.raises(ConfigError, match="time_embed_dim = 32, the configuration says 64") as no:
        start(tmp_path, override)

    assert no.value.exit_code == 78
    assert no.value.where == f"{tmp_path}/a/run.json"
    assert len(list((tmp_path / "a/attempts").iterdir())) == 1


def test_recomputing_activations_makes_no_other_network(tmp_path: Path) -> None:
    started(tmp_path)

    run = started(tmp_path, "--checkpoint-activations", "false", "--checkpoint-num-layers", "2")

    assert run.attempt.number == 2


def test_secrets_are_masked_in_everything_that_is_kept(tmp_path: Path) -> None:
    load_from = "s3://weights/a?X-Amz-Signature=hunter22"

    run = started(tmp_path, "--load", load_from)
    close_attempt(run, f"nothing lies at {load_from}")

    kept = "".join(path.read_text() for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert "s3://weights/a?X-Amz-Signature=***" in kept
    assert "hunter22" not in kept


def test_the_end_of_an_attempt_is_recorded_with_its_cause(tmp_path: Path) -> None:
    close_attempt(started(tmp_path), "a shard is cut")

    attempt = read_json(tmp_path, "a/attempts/*.json")
    assert attempt["cause"] == "a shard is cut"
    assert attempt["ended"] >= attempt["started"]


def test_a_cause_that_cannot_be_recorded_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = started(tmp_path)

    def refuse(self: LocalStorage, key: str, data: bytes) -> None:
        raise RetryableError("no answer", where=key, fix="wait")

    monkeypatch.setattr(LocalStorage, "write_small", refuse)

    close_attempt(run, "a shard is cut")

    assert [record.message for record in caplog.records] == [
        "the end of the attempt was not recorded"
    ]


@pytest.mark.parametrize(
    ("raised", "kind", "code"),
    [
        (RetryableError("x", where="y", fix="z"), RetryableError, 138),
        (ConfigErrors([ConfigError("x", where="y", fix="z")]), ConfigError, 78),
    ],
)
def test_an_error_of_rank_zero_keeps_its_class_and_texts(
    raised: ConfigErrors | RetryableError, kind: type[Exception], code: int
) -> None:
    def work() -> None:
        raise raised

    with pytest.raises(kind) as caught:
        on_rank_zero(0, work)

    assert (caught.value.what, caught.value.where, caught.value.fix) == ("x", "y", "z")
    assert caught.value.exit_code == code


def test_an_error_of_rank_zero_is_the_same_on_every_rank() -> None:
    program = Path(__file__).with_name("rank_zero.py")

    texts = outputs(run_processes([str(program)], [0, 1], 2))

    told = [json.loads(text) for text in texts]
    assert told[0] == told[1]
    missing = ObjectMissingError("x", where="y", fix="z")
    assert told[0] == [["answer", {"a": 1}], ["InputMissingError", missing.exit_code, "x"]]
