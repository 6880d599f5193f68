"""Noise schedule, denoiser, loss, sampler and guidance sections of `model:`."""

from __future__ import annotations

from typing import Any

from app.config import upstream
from app.config.kinds import boolean, choice, exactly, integer, optional, real
from app.config.reader import (
    Context,
    Field,
    OpenComponent,
    Reader,
    constant,
    open_below,
    open_part,
    rows,
)
from app.config.schema.diffusion import (
    DenoiserConfig,
    GuidanceConfig,
    LossConfig,
    SamplerConfig,
    ScheduleConfig,
    TimestepConfig,
)
from app.config.target import Component

SCHEDULE = rows(
    ScheduleConfig,
    Field("linear_start", real(above=0, maximum=1)),
    Field("linear_end", real(above=0, maximum=1)),
    Field("num_timesteps", integer(2)),
    Field("shift_scale", real(above=0)),
    Field("keep_start", boolean()),
    Field("post_shift", boolean()),
)
TABLE_ORDER = (
    constant("do_append_zero", False, "the table has no extra entry"),
    constant("flip", True, "the table ascends in timesteps"),
)
DENOISER = rows(
    DenoiserConfig,
    Field("num_idx", integer(2)),
    constant("quantize_c_noise", False, "c_noise is the timestep already"),
    *TABLE_ORDER,
)
TIMESTEPS = rows(
    TimestepConfig,
    Field("num_idx", integer(2)),
    Field("uniform_sampling", boolean()),
    Field("group_num", integer(0)),
    *TABLE_ORDER,
)
LOSS = rows(
    LossConfig,
    Field("type", choice("l2", "l1"), name="kind"),
    Field("offset_noise_level", real(0)),
    Field("min_snr_value", optional(real(above=0))),
    Field("batch2model_keys", optional(exactly(None, "not supported")), None, ""),
)
SAMPLER = rows(
    SamplerConfig,
    Field("num_steps", integer(2)),
    Field("fixed_frames", integer(0)),
    Field("sdedit", boolean()),
)
# The released models' numbers are written in their files, so `scale`, `exp` and `num_steps` have
# no default here.
GUIDANCE = {
    "dynamic": (
        Field("scale", real()),
        Field("exp", integer(1)),
        Field("num_steps", integer(1)),
        *rows(GuidanceConfig, Field("step_units", choice("training", "sampling"))),
    ),
    "constant": (Field("scale", real()),),
    "identity": (),
}


def read_schedule(owner: Reader, context: Context) -> ScheduleConfig | None:
    """`discretization_config` of a section."""
    part = open_below(owner, "discretization_config", "schedule", context)
    if part is None:
        return None
    values = part.params.fields(SCHEDULE)
    part.params.close()
    return context.problems.build(ScheduleConfig, values)


def read_denoiser(node: object, where: str, context: Context) -> DenoiserConfig | None:
    """`denoiser_config`."""
    part = open_part(node, where, "denoiser", context)
    if part is None:
        return None
    part.node.close()
    params = part.params
    params.dead(upstream.DEAD_DENOISER)
    _close(open_below(params, "scaling_config", "scaling", context))
    values = params.fields(DENOISER)
    values["schedule"] = read_schedule(params, context)
    params.close()
    return _built(DenoiserConfig, values, context)


def read_loss(node: object, where: str, context: Context) -> LossConfig | None:
    """`loss_fn_config`."""
    part = open_part(node, where, "loss", context)
    if part is None:
        return None
    part.node.close()
    params = part.params
    params.dead(upstream.DEAD_LOSS)
    values = params.fields(LOSS)
    values["timesteps"] = _timesteps(params, context)
    params.close()
    return _built(LossConfig, values, context)


def _timesteps(params: Reader, context: Context) -> TimestepConfig | None:
    part = open_below(params, "sigma_sampler_config", "timesteps", context)
    if part is None:
        return None
    values = part.params.fields(TIMESTEPS)
    values["schedule"] = read_schedule(part.params, context)
    part.params.close()
    return _built(TimestepConfig, values, context)


def read_sampler(node: object, where: str, context: Context) -> Component[SamplerConfig] | None:
    """`sampler_config`."""
    part = open_part(node, where, "sampler", context)
    if part is None:
        return None
    part.node.close()
    params = part.params
    params.dead(upstream.DEAD_SAMPLER)
    values = params.fields(SAMPLER)
    values["schedule"] = read_schedule(params, context)
    values["guidance"] = _guidance(params, values["num_steps"], context)
    params.close()
    config = _built(SamplerConfig, values, context)
    return part.component(config) if config else None


def _guidance(
    params: Reader, num_steps: int | None, context: Context
) -> Component[GuidanceConfig] | None:
    part = open_below(params, "guider_config", "guidance", context)
    if part is None:
        return None
    reader = part.params
    kind = part.target.choice
    if reader.has("dyn_thresh_config"):
        _close(open_below(reader, "dyn_thresh_config", "threshold", context))
    if kind != "dynamic":
        reader.dead(upstream.DEAD_GUIDANCE)
    values = reader.fields(GUIDANCE[kind])
    if kind == "identity":
        values["scale"] = 1.0
    reader.close()
    config = _built(GuidanceConfig, values, context)
    if config is None:
        return None
    if kind == "dynamic" and num_steps not in (None, config.num_steps):
        params.problems.warn(
            f"guider_config.params.num_steps is {config.num_steps}, "
            f"but the sampler takes {num_steps} steps",
            where=params.path("num_steps"),
        )
    return part.component(config)


def _close(part: OpenComponent | None) -> None:
    """A part without params."""
    if part is not None:
        part.params.close()


def _built(factory: Any, values: dict[str, Any], context: Context) -> Any:
    """Construct, unless a required value was missing or wrong (None means both)."""
    optional_names = {"min_snr_value"}
    if any(value is None and name not in optional_names for name, value in values.items()):
        return None
    return context.problems.build(factory, values)
