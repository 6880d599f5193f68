"""Item 11: upstream's learning-rate curve, to the last bits of Python's floats."""

from __future__ import annotations

from typing import Any

import pytest

from app.config.schema.training import (
    EvaluationConfig,
    LrScheduleConfig,
    OptimizerConfig,
    TrainingConfig,
)
from app.training.lr_schedule import LrSchedule
from tests.parity.golden import cases

ITEMS = ("11",)
ROWS = [(case, row) for case in cases(*ITEMS) for row in case.json["rows"]]


def schedule_of(row: dict[str, Any]) -> LrSchedule:
    training = TrainingConfig(
        steps=row["train_iters"],
        epochs=None,
        micro_batch=1,
        accumulation=1,
        seed=1,
        mode=row["mode"],
        precision="fp32",
        zero_stage=2,
        gradient_clipping=0.0,
        optimizer=OptimizerConfig(kind="adamw", lr=row["lr"]),
        lr_schedule=LrScheduleConfig(
            style=row["lr_decay_style"],
            decay_steps=row["lr_decay_iters"],
            decay_ratio=row["lr_decay_ratio"],
            warmup=row["warmup"],
            curve="sat",
        ),
        evaluation=EvaluationConfig(batch_size=1),
    )
    return LrSchedule.from_config(training, start_step=row["start_iteration"])


@pytest.mark.parametrize(("case", "row"), [pair for pair in ROWS if "error" not in pair[1]])
def test_the_sat_curve_is_upstreams(case: Any, row: dict[str, Any]) -> None:
    schedule = schedule_of(row)

    for step, recorded in enumerate(row["lr_used_at_step"]):
        groups = recorded if isinstance(recorded, list) else [recorded]
        ours = [scale * schedule.lr(step) for scale in row["group_lr_scale"]]
        assert ours == pytest.approx(groups, rel=case.json["tolerances"]["rel"], abs=1e-18)


@pytest.mark.parametrize(("case", "row"), [pair for pair in ROWS if "error" in pair[1]])
def test_where_upstream_divides_by_zero_the_plateau_stays(case: Any, row: dict[str, Any]) -> None:
    # Upstream difference: warmup 0 with mode finetune ends upstream's run at the first step.
    assert row["warmup"] == 0
    assert row["mode"] == "finetune"

    schedule = schedule_of(row)

    assert schedule.lr(0) == pytest.approx(0.05 * row["lr"])
    assert schedule.lr(99) == pytest.approx(0.05 * row["lr"])
