"""The default learning-rate curve."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from app.config.schema.training import LrScheduleConfig
from app.errors import ConfigError
from app.training.lr_schedule import LrSchedule
from tests.unit.training.configs import training_config


def schedule(steps: int = 100, lr: float = 1.0, **fields: Any) -> LrSchedule:
    config = training_config(steps=steps, lr=lr)
    chosen = LrScheduleConfig(**{"curve": "default", **fields})
    return LrSchedule.from_config(replace(config, lr_schedule=chosen))


def test_warmup_rises_in_equal_steps_from_one_part_to_the_whole() -> None:
    curve = schedule(warmup=0.04)

    assert [curve.lr(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


def test_linear_decay_ends_at_zero_after_the_last_step() -> None:
    curve = schedule(warmup=0.1)

    rates = [curve.lr(step) for step in range(10, 101)]

    assert rates[0] == 1.0
    assert rates[-2] == pytest.approx(1 / 90)
    assert rates[-1] == 0.0
    falls = [a - b for a, b in pairwise(rates)]
    assert falls == pytest.approx([1 / 90] * 90)


def test_cosine_decay_passes_the_middle_and_ends_at_the_ratio() -> None:
    curve = schedule(style="cosine", warmup=0.0, decay_ratio=0.2)

    assert curve.lr(0) == 1.0
    assert curve.lr(50) == pytest.approx(0.6)
    assert curve.lr(100) == pytest.approx(0.2)
    assert curve.lr(1000) == pytest.approx(0.2)


def test_exponential_decay_falls_by_equal_factors() -> None:
    curve = schedule(style="exponential", warmup=0.0, decay_ratio=0.01)

    assert curve.lr(50) == pytest.approx(0.1)
    assert math.log(curve.lr(11) / curve.lr(10)) == pytest.approx(math.log(0.01) / 100)


def test_a_constant_rate_without_warmup_is_the_base_rate_at_once() -> None:
    curve = schedule(style="constant", warmup=0.0)

    assert {curve.lr(step) for step in range(200)} == {1.0}


def test_a_fine_tune_has_no_plateau_in_the_default_curve() -> None:
    finetune = replace(training_config(steps=100, lr=1.0), mode="finetune")
    pretrain = replace(finetune, mode="pretrain")

    rates = [LrSchedule.from_config(finetune).lr(step) for step in range(100)]

    assert rates == [LrSchedule.from_config(pretrain).lr(step) for step in range(100)]
    assert rates[0] == 1.0  # warmup 0.01 of 100 steps is one step


def test_a_warmup_as_long_as_the_run_never_divides_by_zero() -> None:
    curve = schedule(steps=10, warmup=1.0)

    assert curve.lr(9) == 1.0
    assert curve.lr(10) == 1.0


def test_skipped_steps_hold_the_sat_curve_back_and_not_the_default_one() -> None:
    sat = replace(schedule(warmup=0.1), curve="sat", auto_warmup=False)
    default = schedule(warmup=0.1)

    assert sat.lr(5, skipped=2) == sat.lr(3)
    assert default.lr(5, skipped=2) == default.lr(5)


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"style": "triangle"}, "args.lr_decay_style"),
        ({"warmup": 1.5}, "args.warmup"),
        ({"style": "cosine", "decay_ratio": 0.0}, "args.lr_decay_ratio"),
    ],
)
def test_a_curve_that_cannot_be_drawn_is_an_error(fields: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        schedule(**fields)

    assert caught.value.where == where
