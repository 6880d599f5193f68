"""The whole configuration of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from app.config.schema.data import DataConfig
from app.config.schema.model import ModelConfig
from app.config.schema.training import TrainingConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class CompatConfig:
    """Each place where we fix upstream, switchable (docs/upstream_differences.md).

    `compat: sat` sets all of them to upstream's behaviour; each key can be set alone.
    """

    mode: str = "default"  # "default" or "sat"
    precedence: str = "flags"  # "yaml": the YAML beats the command line
    lr_curve: str = "default"
    frame_rule: str = "exact"
    order: str = "epoch"  # "sat": with replacement, an order independent of the seed
    draws: str = "keyed"  # "sat": global generators, seed + data-parallel rank
    strata: str = "global"  # "sat": by data-parallel rank, off at 8 ranks or fewer
    image_dropout: str = "sample"  # "micro_batch"
    position_rows: str = "place"  # "sat": tokens of smaller latents get rows of other places
    flag_types: str = "typed"  # "sat": `--log-image False` is true, as for any other text
    section_precision: str = "args"  # "sat": a section without bf16 and fp16 means fp32
    activation_checkpointing: str = "args"  # "model": args.checkpoint_activations is not read


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Source of truth of a run; `args` (the Namespace) is rendered from it."""

    run_id: str
    compat: CompatConfig
    model: ModelConfig | None
    data: DataConfig | None
    training: TrainingConfig | None  # None in mode inference
    arguments: Mapping[str, object]  # final value of every argument of the table, by name
    sections: Mapping[
        str, object
    ]  # merged plain `model`, `data`, `deepspeed`, as upstream's args have them
    origins: Mapping[str, str] = field(
        default_factory=dict
    )  # dotted key -> file, flag or "default"
    registered: Mapping[str, str] = field(
        default_factory=dict
    )  # --register NAME=package.module:Class
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplableRun(RunConfig):
    """A configuration that `cogvx sample` can start with (app.config.runnable)."""

    model: ModelConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodableRun(RunConfig):
    """A configuration that `cogvx encode` can start with (app.config.runnable)."""

    model: ModelConfig
    data: DataConfig
    training: TrainingConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainableRun(EncodableRun):
    """A configuration that `cogvx train` can start with (app.config.runnable)."""

    runs_url: str  # args.save
