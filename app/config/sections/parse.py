"""Typed configuration from plain dicts, every mistake reported at once.

Each `parse_*` takes one section as YAML has it (`target:` and `params:`), the dotted path to
name in messages, and the table of names (`app.registry.TARGETS`, or that plus a caller's own
rows). Raises ConfigErrors with all mistakes; warnings go to `Problems.warnings` if one is given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from app.config.problems import Problems
from app.config.reader import Context
from app.config.schema.data import DataConfig
from app.config.schema.diffusion import DenoiserConfig, LossConfig, SamplerConfig
from app.config.schema.encoders import ConditionerConfig, VAEConfig
from app.config.schema.model import DiTConfig, ModelConfig
from app.config.sections.data import read_data
from app.config.sections.diffusion import read_denoiser, read_loss, read_sampler
from app.config.sections.encoders import read_conditioner, read_first_stage
from app.config.sections.model import read_model
from app.config.sections.network import read_network
from app.config.target import Component, Registry

Parsed = TypeVar("Parsed")
Read = Callable[[object, str, Context], Parsed | None]


def _parse(
    read: Read[Parsed], node: object, where: str, targets: Registry, problems: Problems | None
) -> Parsed:
    problems = problems if problems is not None else Problems()
    parsed = read(node, where, Context(targets, problems))
    problems.raise_errors()
    assert parsed is not None, "a section without a result must have recorded a mistake"
    return parsed


def parse_network(
    node: object, where: str, targets: Registry, problems: Problems | None = None
) -> Component[DiTConfig]:
    """`model.network_config`."""
    return _parse(read_network, node, where, targets, problems)


def parse_first_stage(
    node: object, where: str, targets: Registry, problems: Problems | None = None
) -> Component[VAEConfig]:
    """`model.first_stage_config`."""
    return _parse(read_first_stage, node, where, targets, problems)


def parse_conditioner(
    node: object, where: str, targets: Registry, problems: Problems | None = None
) -> ConditionerConfig:
    """`model.conditioner_config`."""
    return _parse(read_conditioner, node, where, targets, problems)


def parse_denoiser(
    node: object, where: str, targets: Registry, problems: Problems | None = None
) -> DenoiserConfig:
    """`model.denoiser_config`."""
    return _parse(read_denoiser, node, where, targets, problems)


def parse_loss(
    node: object, where: str, targets: Registry, problems: Problems | None = None
) -> LossConfig:
    """`model.loss_fn_config`."""
    return _parse(read_loss, node, where, targets, problems)


def parse_sampler(
    node: object, where: str, targets: Registry, problems: Problems | None = None
) -> Component[SamplerConfig]:
    """`model.sampler_config`."""
    return _parse(read_sampler, node, where, targets, problems)


def parse_model(
    node: object, where: str, targets: Registry, problems: Problems | None = None
) -> ModelConfig:
    """Section `model`."""
    return _parse(read_model, node, where, targets, problems)


def parse_data(
    node: object, where: str, targets: Registry, problems: Problems | None = None
) -> DataConfig:
    """Section `data`, without the paths and loader settings that `args` holds."""
    return _parse(read_data, node, where, targets, problems)
