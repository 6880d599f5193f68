"""What YAML says about a model: the network, its surroundings, and where its frozen parts are.

A file may describe any of these: one with a network alone describes only a network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from app.config.layers import merge_layers
from app.config.problems import Problems
from app.config.schema.diffusion import ScheduleConfig
from app.config.schema.model import DiTConfig, LoraConfig
from app.config.sections.parse import (
    parse_conditioner,
    parse_denoiser,
    parse_first_stage,
    parse_network,
    parse_sampler,
)
from app.conversion.architecture import SAT_LORA_ALPHA
from app.conversion.pipeline import PipelineFacts
from app.conversion.source import SidecarConfig
from app.errors import ConfigError
from app.registry import TARGETS


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """Parts of a `model:` section; None where it says nothing."""

    network: DiTConfig | None = None
    facts: PipelineFacts | None = None
    vae_path: str | None = None  # first_stage_config.params.ckpt_path
    t5_path: str | None = None  # emb_models[0].params.model_dir


def describe_section(section: Mapping[str, Any], where: str) -> ModelDescription:
    """Read a merged `model:` section.

    Raises:
        ConfigErrors: a part is invalid.
    """
    network = _network(section, where)
    vae = section.get("first_stage_config")
    text = section.get("conditioner_config")
    first_stage = parse_first_stage(vae, f"{where}: first_stage_config", TARGETS) if vae else None
    embedder = parse_conditioner(text, f"{where}: conditioner_config", TARGETS) if text else None
    return ModelDescription(
        network=network,
        facts=_facts(section, network, where),
        vae_path=getattr(first_stage.params, "ckpt_path", None) if first_stage else None,
        t5_path=embedder.text.model_dir if embedder else None,
    )


def describe_files(base: Sequence[str], overrides: Sequence[str] = ()) -> ModelDescription:
    """Read YAML files, merged in order.

    Raises:
        ConfigError: a file is missing or invalid, or none has a `model:` section.
    """
    return describe_section(_model_section(base, overrides), ", ".join(base))


def read_sidecar(path: Path) -> SidecarConfig:
    """What a YAML file in a folder of weights says of the network and of LoRA, or of LoRA alone.

    Raises:
        ConfigError: it does not parse.
    """
    section = _model_section([str(path)], ())
    node = section.get("network_config") or {}
    network = _network(section, str(path))
    if network is not None:
        return SidecarConfig(network, network.lora)
    modules = (node.get("params") or {}).get("modules") or {}
    params = (modules.get("lora_config") or {}).get("params") or {}
    if "r" not in params:
        return SidecarConfig(None, None)
    try:
        layers = params.get("layer_range")
        lora = LoraConfig(
            rank=int(params["r"]),
            alpha=float(params.get("lora_alpha", SAT_LORA_ALPHA)),
            layer_range=None if layers is None else tuple(int(layer) for layer in layers),
        )
    except (TypeError, ValueError) as cause:
        raise ConfigError(
            f"lora_config.params does not parse ({cause})",
            where=str(path),
            fix="give r and lora_alpha as numbers",
        ) from cause
    return SidecarConfig(None, lora)


def _model_section(base: Sequence[str], overrides: Sequence[str]) -> Mapping[str, Any]:
    problems = Problems()
    merged = merge_layers(list(base), None, list(overrides), problems).sections
    problems.raise_errors()
    section = merged.get("model")
    if not isinstance(section, Mapping):
        raise ConfigError(
            "no 'model' section in these files",
            where=", ".join(base),
            fix="name the model's file, for example configs/cogvideox_5b.yaml",
        )
    return section


def _network(section: Mapping[str, Any], where: str) -> DiTConfig | None:
    node = section.get("network_config")
    if not node or "target" not in node:  # a layer that changes a network, such as its LoRA
        return None
    part = parse_network(node, f"{where}: network_config", TARGETS)
    if not isinstance(part.params, DiTConfig):
        raise ConfigError(
            f"{part.name} is a class of your own, whose weights have no known layout",
            where=f"{where}: network_config.target",
            fix="convert weights of dit_video_concat.DiffusionTransformer",
        )
    return part.params


def _facts(
    section: Mapping[str, Any], network: DiTConfig | None, where: str
) -> PipelineFacts | None:
    if "scale_factor" not in section or network is None:
        return None
    scale = float(section["scale_factor"])
    denoiser, sampler = section.get("denoiser_config"), section.get("sampler_config")
    image_scale = section.get("image_latent_scale")
    if image_scale is None:  # the same default as in training
        image_scale = scale if network.ofs_embed_dim is None else 1.0
    facts = PipelineFacts(
        scale_factor=scale,
        schedule=parse_denoiser(denoiser, f"{where}: denoiser_config", TARGETS).schedule
        if denoiser
        else ScheduleConfig(),
        image_latent_scale=float(image_scale),
    )
    if not sampler:
        return facts
    target = parse_sampler(sampler, f"{where}: sampler_config", TARGETS).target
    return replace(facts, scheduler=TARGETS[target].scheduler, sampler=target)
