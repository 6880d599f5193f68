"""One precision at a time, from any layer; ZeRO needs one to be named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.configs import TINY, base, layer, load, mistakes

MODEL = base("tiny/tiny")


def precision(*argv: str) -> str:
    training = load(*argv).training
    assert training is not None
    section: Any = training.deepspeed
    switches = {name: section[name]["enabled"] for name in ("bf16", "fp16")}
    on = [name for name, enabled in switches.items() if enabled]
    assert on == ([] if training.precision == "fp32" else [training.precision])
    return training.precision


def with_section(folder: Path, section: dict[str, Any], args: dict[str, Any]) -> list[str]:
    return [*MODEL, layer(folder, {"args": args, "deepspeed": section})]


def test_flag_switches_the_other_precision_off_and_says_so() -> None:
    config = load(*base("cogvideox_2b", "sft"), "--fp16")

    assert config.arguments["fp16"] is True
    assert config.arguments["bf16"] is False
    assert any(
        "fp16 (flag --fp16) switches bf16 off" in line and "sft.yaml" in line
        for line in config.warnings
    )


def test_flag_can_switch_to_fp32() -> None:
    assert precision(*base("cogvideox_2b", "sft"), "--bf16", "false") == "fp32"


def test_override_of_the_section_wins_over_a_flag() -> None:
    words = [*base("cogvideox_2b", "sft"), "--fp16", "deepspeed.bf16.enabled=true"]

    assert precision(*words) == "bf16"


def test_yaml_section_wins_over_yaml_args(tmp_path: Path) -> None:
    words = with_section(tmp_path, {"bf16": {"enabled": True}}, {"fp16": True})

    assert precision(*words) == "bf16"


def test_args_give_the_precision_of_a_silent_section(tmp_path: Path) -> None:
    words = with_section(tmp_path, {"gradient_clipping": 1.0}, {"bf16": True})

    assert precision(*words) == "bf16"


def test_silent_section_means_fp32_under_compat_sat(tmp_path: Path) -> None:
    words = with_section(tmp_path, {"gradient_clipping": 1.0}, {"bf16": True})

    assert precision(*words, "--compat", "sat") == "fp32"
    assert precision(*words, "--compat", "sat", "--section-precision", "args") == "bf16"


@pytest.mark.parametrize(
    "words",
    [
        ["--fp16", "--bf16"],
        ["deepspeed.fp16.enabled=true", "deepspeed.bf16.enabled=true"],
        ["args.fp16=true", "args.bf16=true"],
    ],
)
def test_two_precisions_of_one_layer_are_a_mistake(words: list[str]) -> None:
    found = mistakes(*TINY, *words)

    assert len(found) == 1
    assert "are both on" in found[0]


@pytest.mark.parametrize("compat", ["default", "sat"])
def test_zero_without_a_precision_names_the_key(tmp_path: Path, compat: str) -> None:
    words = with_section(tmp_path, {"zero_optimization": {"stage": 2}}, {})

    found = mistakes(*words, "--compat", compat)

    assert len(found) == 1
    assert "ZeRO stage 2 without a precision" in found[0]
    assert "deepspeed.zero_optimization.stage" in found[0]
    assert precision(*words, "deepspeed.bf16.enabled=false") == "fp32"


@pytest.mark.parametrize("compat", ["default", "sat"])
def test_zero_stage_without_a_section_needs_a_precision_too(compat: str) -> None:
    found = mistakes(*MODEL, "--zero-stage", "1", "--compat", compat)

    assert "ZeRO stage 1 without a precision" in found[0]
    assert precision(*MODEL, "--zero-stage", "1", "--bf16", "--compat", compat) == "bf16"
