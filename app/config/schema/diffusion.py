"""Noise schedule, denoiser, loss, guidance and samplers. Key names are upstream's."""

from __future__ import annotations

from dataclasses import dataclass, field

from app.config.argument import VALIDATION, Disposition, argument
from app.config.kinds import boolean
from app.config.target import Component
from app.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig:
    """`discretization_config.params` (ZeroSNRDDPMDiscretization)."""

    linear_start: float = 0.00085
    linear_end: float = 0.0120
    num_timesteps: int = 1000
    shift_scale: float = 1.0
    keep_start: bool = False
    post_shift: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.linear_start < self.linear_end:
            raise ConfigError(
                f"linear_start {self.linear_start} is not below linear_end {self.linear_end}",
                where="model.denoiser_config.params.discretization_config.params.linear_start",
                fix="leave both out for the released models' 0.00085 and 0.0120",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class DenoiserConfig:
    """`denoiser_config.params` (DiscreteDenoiser with VideoScaling)."""

    num_idx: int = 1000
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class TimestepConfig:
    """`sigma_sampler_config.params` (DiscreteSampling)."""

    num_idx: int = 1000
    uniform_sampling: bool = False  # stratify timesteps over the global batch
    group_num: int = 0  # upstream's number of strata; read under `compat: sat` only
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """`loss_fn_config.params` (VideoDiffusionLoss)."""

    kind: str = "l2"  # type: l2 or l1
    offset_noise_level: float = 0.0
    min_snr_value: float | None = None
    timesteps: TimestepConfig = field(default_factory=TimestepConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class GuidanceConfig:
    """`guider_config.params` (DynamicCFG, VanillaCFG)."""

    scale: float = 6.0
    exp: int = 5  # DynamicCFG
    num_steps: int = 50  # DynamicCFG: divisor in the schedule
    step_units: str = "training"  # "sampling" gives the ramp that people expect


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplerConfig:
    """`sampler_config.params`."""

    num_steps: int
    guidance: Component[GuidanceConfig]
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    fixed_frames: int = 0
    sdedit: bool = argument(
        boolean(),
        False,
        "noise the fixed frames of the sampler instead of keeping them clean",
        group=VALIDATION,
        disposition=Disposition.MAPPED,
        note="model.sampler_config.params.sdedit",
    )
