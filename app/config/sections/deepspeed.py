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
from app.config.problems import suggestion
from app.config.reader import REQUIRED, Context, Field, Reader, names_of, rows
from app.config.schema.training import OptimizerConfig


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


TOP_KEYS = _names(
    """
    activation_checkpointing aio amp bf16 checkpoint comms_logger communication_data_type compile
    csv_monitor data_types dataloader_drop_last disable_allgather disable_python_gc dump_state
    eigenvalue flops_profiler fp16 gradient_accumulation_steps gradient_allreduce_op
    gradient_clipping gradient_predivide_factor memory_breakdown optimizer prescale_gradients
    seq_parallel_communication_data_type sparse_gradients steps_per_print tensorboard timers
    torch_autocast train_batch_size train_micro_batch_size_per_gpu wall_clock_breakdown wandb
    zero_allow_untested_optimizer zero_force_ds_cpu_optimizer zero_optimization
    """
)
ZERO_KEYS = _names(
    """
    stage3_allgather_sequential stage3_module_granularity_threshold
    stage3_use_all_reduce_for_fetch_params
    allgather_bucket_size allgather_partitions allgather_sequential compute_grad_norm
    contiguous_gradients cpu_offload cpu_offload_param cpu_offload_use_pin_memory
    elastic_checkpoint enable_sanity_checks gather_16bit_weights_on_model_save
    ignore_unused_parameters leaf_module legacy_stage1 load_from_fp32_weights
    log_trace_cache_warnings max_live_parameters max_reuse_distance memory_efficient_linear
    model_persistence_threshold module_granularity_threshold offload_optimizer offload_param
    override_module_apply overlap_comm param_persistence_threshold parameter_alignment
    pipeline_loading_checkpoint prefetch_bucket_size reduce_bucket_size reduce_scatter
    round_robin_gradients stage stage3_gather_16bit_weights_on_model_save
    stage3_gather_fp16_weights_on_model_save stage3_max_live_parameters stage3_max_reuse_distance
    stage3_model_persistence_threshold stage3_param_persistence_threshold
    stage3_prefetch_bucket_size sub_group_size use_all_reduce_for_fetch_params
    use_multi_rank_bucket_allreduce zenflow zero_hpz_partition_size zero_quantized_gradients
    zero_quantized_nontrainable_weights zero_quantized_weights
    """
)
PRECISION_KEYS = _names(
    """
    auto_cast bf16_master_weights_and_grads bf16_optimizer_states check_grad_overflow
    consecutive_hysteresis enabled fp16_master_weights_and_grads hysteresis immediate_grad_update
    initial_scale_power loss_scale loss_scale_window min_loss_scale
    """
)


# `args` and this section say the same number twice: argument -> path in the section.
HOMES: dict[str, tuple[str, ...]] = {
    "batch_size": ("train_micro_batch_size_per_gpu",),
    "gradient_accumulation_steps": ("gradient_accumulation_steps",),
    "lr": ("optimizer", "params", "lr"),
    "weight_decay": ("optimizer", "params", "weight_decay"),
    "zero_stage": ("zero_optimization", "stage"),
}
OPTIMIZER_PARAMS = rows(
    OptimizerConfig,
    Field("betas", sequence(real(0, 1), length=2)),
    Field("eps", real(above=0)),
    Field("ema_decay", optional(real(0, 1))),
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
    """What DeepSpeed gets when no section is given; upstream's JSON files by ZeRO stage.

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
            "'bias_correction' must stay on", where=params.path("bias_correction"), fix="remove it"
        )
    values = params.fields(OPTIMIZER_PARAMS)
    params.close()
    kind = upstream.optimizer_kind(name, params.values)
    if kind is None:
        context.problems.add(
            f"unknown optimizer '{name}'",
            where=reader.path("type"),
            fix=suggestion(name, names_of("optimizer", context.targets)),
        )
    elif kind == "ema_adamw" and values["ema_decay"] is None:
        values["ema_decay"] = STOCK_EMA_DECAY
    elif kind != "ema_adamw" and values["ema_decay"] is not None:
        context.problems.add(
            f"'{name}' keeps no moving average",
            where=params.path("ema_decay"),
            fix="use type sat.ops.FusedEmaAdam, or remove ema_decay",
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
            fix="use args.lr_decay_style, args.warmup and args.lr_decay_iters",
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
