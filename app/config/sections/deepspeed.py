"""Section `deepspeed:`: known keys, our optimizer, and the default by ZeRO stage.

Numbers that `args` has too (batch size, accumulation, lr, weight decay, precision, ZeRO stage)
are resolved once, in app.config.values, and written back into this section.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from app.config import upstream
from app.config.kinds import boolean, integer, optional, real, sequence
from app.config.reader import REQUIRED, Context, Field, Reader, names_of, suggestion
from app.config.sections.deepspeed_keys import PRECISION_KEYS, TOP_KEYS, ZERO_KEYS

# `args` and this section say the same number twice: argument -> path in the section.
HOMES: dict[str, tuple[str, ...]] = {
    "batch_size": ("train_micro_batch_size_per_gpu",),
    "gradient_accumulation_steps": ("gradient_accumulation_steps",),
    "lr": ("optimizer", "params", "lr"),
    "weight_decay": ("optimizer", "params", "weight_decay"),
    "zero_stage": ("zero_optimization", "stage"),
}
OPTIMIZER_PARAMS = (
    Field("betas", sequence(real(0, 1), length=2), (0.9, 0.999)),
    Field("eps", real(above=0), 1e-8),
    Field("ema_decay", optional(real(0, 1)), None),
)
OPTIMIZER_SWITCHES = (
    "torch_adam",
    "adam_w_mode",
    "bias_correction",
    "set_grad_none",
    "use_num_upates",
    "lr",
    "weight_decay",
)
STOCK_EMA_DECAY = 0.9999


def value_at(section: Mapping[str, Any], path: tuple[str, ...]) -> object:
    """The value at a path of a section; REQUIRED if it is not there."""
    node: Any = section
    for key in path:
        if not isinstance(node, Mapping) or key not in node:
            return REQUIRED
        node = node[key]
    return node


def default_section(stage: int) -> dict[str, Any]:
    """What DeepSpeed is told when no section is given; upstream's JSON files by ZeRO stage.

    Source: spec of SAT's deepspeed_zero{0,1,2}.json; stage 3, which upstream lacks, is stage 2
    with its own number.
    """
    if stage == 0:
        optimizer = {"type": "AdamW", "params": {}}
        return {"gradient_clipping": 0.1, "optimizer": optimizer}
    zero: dict[str, Any] = {
        "stage": stage,
        "contiguous_gradients": False,
        "overlap_comm": True,
        "reduce_scatter": True,
        "reduce_bucket_size": 40_000_000,
        "allgather_bucket_size": 100_000_000,
        "load_from_fp32_weights": False,
    }
    return {
        "gradient_clipping": 0.1,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": zero,
        "optimizer": {"type": "Adam", "params": {"betas": [0.9, 0.95], "eps": 1e-8}},
    }


def read_optimizer(node: object, where: str, context: Context) -> dict[str, Any]:
    """`deepspeed.optimizer` as fields of OptimizerConfig, without lr and weight decay."""
    reader = Reader(node, where, context.problems)
    name = str(reader.values.get("type", "AdamW")) if reader.has("type") else "AdamW"
    params = reader.child("params") or Reader({}, f"{where}.params", context.problems)
    reader.close()
    for key in OPTIMIZER_SWITCHES:
        params.has(key)
    if params.values.get("bias_correction", True) is not True:
        context.problems.add(
            "'bias_correction' must stay on", where=params.path("bias_correction"), mend="remove it"
        )
    values = params.fields(OPTIMIZER_PARAMS)
    params.close()
    kind = upstream.optimizer_kind(name, params.values)
    if kind is None:
        context.problems.add(
            f"unknown optimizer '{name}'",
            where=reader.path("type"),
            mend=suggestion(name, names_of("optimizer", context.targets)),
        )
    elif kind == "ema_adamw" and values["ema_decay"] is None:
        values["ema_decay"] = STOCK_EMA_DECAY
    elif kind != "ema_adamw" and values["ema_decay"] is not None:
        context.problems.add(
            f"'{name}' keeps no moving average",
            where=params.path("ema_decay"),
            mend="use type sat.ops.FusedEmaAdam, or remove ema_decay",
        )
    return {"kind": kind or "adamw", **values}


def check_section(section: object, where: str, context: Context) -> float:
    """Report unknown keys and wrong types; return the gradient clipping (0: off)."""
    problems = context.problems
    reader = Reader(section, where, problems)
    reader.dead(
        dict.fromkeys(upstream.LOSS_SCALE_KEYS, "DeepSpeed reads it inside fp16 only")
        | {"train_batch_size": "it is micro-batch x accumulation x processes"}
    )
    if reader.has("scheduler"):
        problems.add(
            "DeepSpeed's schedulers are not used",
            where=reader.path("scheduler"),
            mend="use args.lr_decay_style, args.warmup and args.lr_decay_iters",
        )
    clipping = reader.value(Field("gradient_clipping", real(0), 0.0))
    _known(reader, TOP_KEYS)
    zero = reader.child("zero_optimization")
    if zero is not None:
        zero.value(Field("stage", integer(0, 3), 0))
        _known(zero, ZERO_KEYS)
    for name in ("fp16", "bf16"):
        precision = reader.child(name)
        if precision is not None:
            precision.value(Field("enabled", boolean(), False))
            _known(precision, PRECISION_KEYS)
    return float(clipping or 0.0)


def _known(reader: Reader, keys: frozenset[str]) -> None:
    reader.known |= keys
    reader.close()


def written_back(section: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the section in which every number with a home in `args` is the resolved one."""
    written = copy.deepcopy(dict(section))
    written.pop("train_batch_size", None)
    for name, path in HOMES.items():
        if name == "zero_stage" and value_at(section, path) is REQUIRED and not values[name]:
            continue
        if path[0] == "optimizer" and "optimizer" not in written:
            continue
        node = written
        for key in path[:-1]:
            if not isinstance(node.get(key), dict):
                node[key] = {}
            node = node[key]
        node[path[-1]] = values[name]
    for name in ("bf16", "fp16"):
        node = written.setdefault(name, {})
        if isinstance(node, dict):
            node["enabled"] = values[name]
    return written
