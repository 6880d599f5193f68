"""The section that DeepSpeed is started with."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app.errors import ConfigError
from app.training.deepspeed_section import deepspeed_section, zero_stage
from tests.unit.training.configs import training_config


def test_our_numbers_replace_those_of_the_section_and_the_rest_stays() -> None:
    given = {
        "train_micro_batch_size_per_gpu": 99,
        "optimizer": {"type": "AdamW"},
        "scheduler": {"type": "WarmupLR"},
        "zero_optimization": {"stage": 3, "overlap_comm": True},
        "wall_clock_breakdown": True,
    }
    config = replace(training_config(accumulation=3, precision="bf16"), deepspeed=given)

    section = deepspeed_section(config, world_size=4, on_cpu=True)

    assert section["train_micro_batch_size_per_gpu"] == 2
    assert section["gradient_accumulation_steps"] == 3
    assert section["train_batch_size"] == 24
    assert section["gradient_clipping"] == 1.0
    assert section["zero_optimization"] == {"stage": 2, "overlap_comm": True}
    assert section["bf16"] == {"enabled": True, "check_grad_overflow": True}
    assert section["fp16"] == {"enabled": False}
    assert section["wall_clock_breakdown"] is True
    assert "optimizer" not in section
    assert "scheduler" not in section
    assert given["zero_optimization"] == {"stage": 3, "overlap_comm": True}


@pytest.mark.parametrize(
    ("precision", "stage", "runs"), [("fp32", 0, 0), ("bf16", 0, 1), ("fp16", 0, 1), ("bf16", 2, 2)]
)
def test_stage_0_in_16_bits_runs_as_stage_1(precision: str, stage: int, runs: int) -> None:
    assert zero_stage(training_config(precision=precision, zero_stage=stage)) == runs


def test_fp16_on_a_cpu_is_an_error_that_names_the_key() -> None:
    with pytest.raises(ConfigError, match="fp16 needs a GPU") as caught:
        deepspeed_section(training_config(precision="fp16"), world_size=1, on_cpu=True)

    assert "args.fp16" in caught.value.where


def test_offloading_keeps_our_optimizer() -> None:
    zero = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
    config = replace(training_config(), deepspeed=zero)

    section = deepspeed_section(config, world_size=1, on_cpu=False)

    assert section["zero_force_ds_cpu_optimizer"] is False


def test_a_key_that_must_be_a_mapping_is_checked() -> None:
    config = replace(training_config(), deepspeed={"bf16": True})

    with pytest.raises(ConfigError, match=r"deepspeed.bf16 is True, not a mapping"):
        deepspeed_section(config, world_size=1, on_cpu=True)
