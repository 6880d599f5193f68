"""The whole configuration of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from app.config.argument import COMPATIBILITY, Argument, argument, arguments_of, declared
from app.config.kinds import choice, optional
from app.config.schema.data import DataConfig
from app.config.schema.model import ModelConfig
from app.config.schema.training import TrainingConfig


def _switch(ours: str, upstream: str, what: str, difference: str, name: str = "") -> Any:
    """A field with our value and upstream's; `difference` is its id in the table of differences."""
    row = Argument(
        name=name,
        kind=optional(choice(ours, upstream)),
        default=None,
        group=COMPATIBILITY,
        ours=True,
        help=f"{what}: {ours}, or {upstream} as upstream ({difference}); default: what compat says",
    )
    return declared(row, ours)


@dataclass(frozen=True, kw_only=True, slots=True)
class CompatConfig:
    """Each place where we fix upstream, switchable (docs/upstream_differences.md).

    `compat: sat` sets all of them to upstream's behaviour; each key can be set alone.
    """

    mode: str = argument(
        choice("default", "sat"),
        "default",
        "sat: upstream's behaviour wherever ours differs",
        group=COMPATIBILITY,
        name="compat",
        ours=True,
    )
    precedence: str = _switch("flags", "yaml", "who wins: a flag or the YAML", "C4")
    flag_types: str = _switch("typed", "sat", "how texts of flags become values", "C7")
    section_precision: str = _switch(
        "args", "sat", "precision when section deepspeed names none", "C11"
    )
    activation_checkpointing: str = _switch(
        "args", "model", "whether args.checkpoint_activations reaches the network", "C12"
    )
    lr_curve: str = _switch("default", "sat", "learning-rate curve", "T1")
    frame_rule: str = _switch("exact", "sat", "which frames of a clip are used", "D1")
    order: str = _switch("epoch", "sat", "order of samples", "D2", "sample_order")
    draws: str = _switch("keyed", "sat", "where random numbers come from", "T2")
    strata: str = _switch("global", "sat", "stratification of timesteps", "T3")
    image_dropout: str = _switch(
        "sample", "micro_batch", "unit of dropping the image condition", "T4"
    )
    rotary_positions: str = _switch(
        "diffusers", "sat", "rotary positions of 1.0 at another size than the network's", "M35"
    )
    position_rows: str = _switch(
        "place", "sat", "rows of a position table that latents of another size use", "F33"
    )


def compat_of(values: Mapping[str, str | None]) -> CompatConfig:
    """The switches from the values of their arguments; None: what `compat` says."""
    chosen = {}
    for name, row in arguments_of(CompatConfig):
        value = values[row.name]
        if value is None and values["compat"] == "sat":
            value = row.kind.choices[1]
        if value is not None:
            chosen[name] = value
    return CompatConfig(**chosen)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Source of truth of a run; `args` (the Namespace) is rendered from it."""

    run_id: str
    compat: CompatConfig
    model: ModelConfig | None
    data: DataConfig | None
    training: TrainingConfig | None  # None in mode inference
    arguments: Mapping[str, object]  # final value of every argument of the table, by name
    # Merged plain `model`, `data`, `deepspeed`, as upstream's args have them.
    sections: Mapping[str, object]
    # Dotted key -> file, flag or "default".
    origins: Mapping[str, str] = field(default_factory=dict)
    # --register NAME=package.module:Class
    registered: Mapping[str, str] = field(default_factory=dict)
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
    start_warnings: tuple[str, ...]  # what keeps no run from starting, and is worth a look
