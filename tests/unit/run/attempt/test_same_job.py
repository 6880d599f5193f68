"""The same job, a longer one, or another: by what would have been trained."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from app.config.arguments.table import ARGUMENTS
from app.config.snapshot import snapshot
from app.errors import ConfigError
from app.run.attempt.same_job import (
    NOT_THE_JOB,
    check_length,
    job_differences,
    samples_per_step,
)
from tests.support.configs import TINY, load


def of(*words: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(snapshot(load(*TINY, *words)))
    return found


@pytest.mark.parametrize(
    "words",
    [
        ("--log-interval", "3"),
        ("--save", "elsewhere"),
        ("--save-interval", "3"),
        ("--keep-checkpoints", "2"),
        ("--num-workers", "7"),
        ("--zero-stage", "1"),
        ("--summary-dir", "logs", "--wandb"),
        ("--checkpoint-activations", "true"),
        ("--eval-interval", "4"),
        ("--latent-cache", "s3://cache"),
        ("--train-iters", "90"),
        ("--batch-size", "1", "--gradient-accumulation-steps", "4"),
        ("data.cache_gib=1",),
        ("data.quarantine.max_share=0.5",),
    ],
)
def test_where_things_lie_and_how_they_are_computed_makes_no_other_job(
    words: tuple[str, ...],
) -> None:
    assert job_differences(of(), of(*words)) == []


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (("--lr", "0.1"), ["args.lr", "deepspeed.optimizer.params.lr"]),
        (("--seed", "7"), ["args.seed"]),
        (("args.train_data=[other]",), ["args.train_data"]),
        (("data.params.num_frames=5",), ["data.params.num_frames"]),
        (("--sample-order", "sat"), ["compat.order"]),
    ],
)
def test_what_changes_the_weights_makes_another_job(
    words: tuple[str, ...], keys: list[str]
) -> None:
    assert [one.key for one in job_differences(of(), of(*words))] == keys


def test_an_argument_that_the_earlier_version_did_not_have_is_at_its_default() -> None:
    old = of()
    del old["args"]["warmup"]
    del old["args"]["restart"]

    assert [one.key for one in job_differences(old, of("--warmup", "0.01"))] == []
    assert [one.key for one in job_differences(old, of("--warmup", "0.5"))] == ["args.warmup"]


def test_every_argument_of_the_list_exists() -> None:
    names = {name.removeprefix("args.") for name in NOT_THE_JOB if name.startswith("args.")}

    assert names - set(ARGUMENTS) == set()


def test_samples_of_a_step_do_not_depend_on_how_the_work_is_divided() -> None:
    one = {"world_size": 1, "micro_batch": 8, "accumulation": 2, "model_parallel_size": 1}
    many = {"world_size": 8, "micro_batch": 2, "accumulation": 2, "model_parallel_size": 2}

    assert samples_per_step(one) == samples_per_step(many) == 16
    assert samples_per_step({"world_size": 1}) is None


def test_a_length_that_was_passed_is_refused_and_one_that_was_reached_is_not() -> None:
    check_length(60, 60, "run")

    with pytest.raises(ConfigError, match="the length is 59 steps, and the run has done 60"):
        check_length(59, 60, "run")
