"""DeepSpeed's configuration: the user's section, with what the arguments decide filled in."""

from __future__ import annotations

import copy
import logging
from typing import Any

from app.config.schema.training import TrainingConfig
from app.errors import ConfigError

log = logging.getLogger(__name__)

NEVER = 1 << 30  # steps: the loop logs, not DeepSpeed


def zero_stage(training: TrainingConfig) -> int:
    """The ZeRO stage that runs.

    Stage 0 in bf16 or fp16 runs as stage 1: DeepSpeed's optimizer for it takes one step with
    empty gradients at the start, so that Adam's bias correction is off by one in every step.
    """
    if training.zero_stage == 0 and training.precision != "fp32":
        log.info(
            "ZeRO stage 0 with 16-bit weights runs as stage 1",
            extra={"precision": training.precision, "reason": "Adam's step count would be wrong"},
        )
        return 1
    return training.zero_stage


def deepspeed_section(training: TrainingConfig, *, world_size: int, on_cpu: bool) -> dict[str, Any]:
    """The `deepspeed` section to start the engine with.

    Batch sizes, precision, clipping and stage come from the configuration, which has already
    resolved the section against the arguments; everything else of the section passes unchanged.

    Raises:
        ConfigError: fp16 on a CPU.
    """
    if training.precision == "fp16" and on_cpu:
        raise ConfigError(
            "fp16 needs a GPU",
            where="args.fp16 (or deepspeed.fp16.enabled)",
            fix="use bf16, or fp32 (neither of the two), on a CPU",
        )
    section: dict[str, Any] = copy.deepcopy(dict(training.deepspeed))
    for name in ("optimizer", "scheduler"):
        section.pop(name, None)  # made by this package, not by DeepSpeed
    zero = _mapping(section, "zero_optimization")
    zero["stage"] = zero_stage(training)
    bf16 = _mapping(section, "bf16")
    bf16["enabled"] = training.precision == "bf16"
    if bf16["enabled"]:
        # A NaN in a gradient must skip the step, as it does in the other precisions.
        bf16["check_grad_overflow"] = True
    _mapping(section, "fp16")["enabled"] = training.precision == "fp16"
    section |= {
        "train_micro_batch_size_per_gpu": training.micro_batch,
        "gradient_accumulation_steps": training.accumulation,
        "train_batch_size": training.micro_batch * training.accumulation * world_size,
        "gradient_clipping": training.gradient_clipping,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": NEVER,
    }
    if zero.get("offload_optimizer") or zero.get("cpu_offload"):
        section["zero_force_ds_cpu_optimizer"] = False  # keep the torch optimizer
    return section


def _mapping(section: dict[str, Any], key: str) -> dict[str, Any]:
    value = section.setdefault(key, {})
    if not isinstance(value, dict):
        raise ConfigError(
            f"deepspeed.{key} is {value!r}, not a mapping",
            where=f"deepspeed.{key}",
            fix=f"write keys below {key}:, or leave it out",
        )
    return value
