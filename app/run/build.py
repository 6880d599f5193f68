"""Build the parts of a run: classes that the configuration names, with their weights.

Nothing is imported by a name that did not come through the registry or a `--register` flag.
"""

from __future__ import annotations

import importlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from app.config.schema.diffusion import SamplerConfig
from app.config.schema.model import DiTConfig, ModelConfig
from app.config.schema.part import Part
from app.config.schema.text import ConditionerConfig
from app.conversion.loading import load_network_weights, load_vae_weights
from app.conversion.sat import sat_names
from app.diffusion.denoiser import Denoiser
from app.diffusion.loss import VideoDiffusionLoss
from app.errors import ConfigError
from app.models.conditioning import joined
from app.models.dit.initialization import init_from_scratch
from app.models.dit.transformer import DiffusionTransformer
from app.models.text.conditioner import Conditioner
from app.models.trainable import TrainableReport, TrainableRules, select_trainable
from app.storage.fetch import fetch

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """Where parts live: device and dtype of the weights, and where remote files are kept."""

    device: torch.device
    dtype: torch.dtype
    cache_dir: Path


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of the engine. Network aside, all are frozen."""

    network: DiffusionTransformer
    vae: Any
    conditioner: Conditioner
    loss: VideoDiffusionLoss
    sampler: Any


def load_class(implementation: str, where: str) -> Any:
    """Import "package.module:Class".

    Raises:
        ConfigError: a registered class that cannot be imported.
    """
    module_name, _, class_name = implementation.partition(":")
    try:
        return getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"cannot import {implementation}: {error}",
            where=where,
            mend="check --register NAME=package.module:Class and that the package is installed",
        ) from error


def build_parts(model: ModelConfig, place: Place) -> Parts:
    """Build every part; frozen ones with their weights, the network with starting values."""
    denoiser = Denoiser(model.denoiser)
    return Parts(
        network=build_network(model.network, place),
        vae=build_vae(model, place),
        conditioner=build_conditioner(model.conditioner, place),
        loss=VideoDiffusionLoss(model.loss, denoiser),
        sampler=build_sampler(model.sampler, denoiser),
    )


def build_network(part: Part[DiTConfig], place: Place) -> DiffusionTransformer:
    """The network on the CPU in fp32, with values for training from scratch."""
    network_class = load_class(part.implementation, "model.network_config.target")
    network: DiffusionTransformer = network_class(part.params)
    init_from_scratch(network)
    return network


def build_vae(model: ModelConfig, place: Place) -> Any:
    """The frozen VAE on its device, with the weights of `ckpt_path`."""
    part = model.first_stage
    vae_class = load_class(part.implementation, "model.first_stage_config.target")
    vae = vae_class(part.params)
    path = getattr(part.params, "ckpt_path", None)
    if path is not None:
        local = fetch(path, place.cache_dir)
        count = load_vae_weights(vae, local, part.params.ignore_keys)
        log.info("VAE loaded", extra={"path": path, "tensors": count})
    return vae.to(device=place.device, dtype=place.dtype).eval().requires_grad_(False)


def build_conditioner(config: ConditionerConfig, place: Place) -> Conditioner:
    """The frozen text encoder with caption dropout."""
    where = "model.conditioner_config.params.emb_models[0].target"
    encoder_class = load_class(config.implementation, where)
    folder = fetch(config.text.model_dir, place.cache_dir)
    encoder = encoder_class.load(folder, config.text, place.dtype, place.device)
    log.info("text encoder loaded", extra={"path": config.text.model_dir})
    return Conditioner(encoder, config.ucg_rate)


def build_sampler(part: Part[SamplerConfig], denoiser: Denoiser) -> Any:
    """The sampler with its guidance."""
    guidance = part.params.guidance
    where = "model.sampler_config"
    guidance_class = load_class(guidance.implementation, f"{where}.params.guider_config.target")
    sampler_class = load_class(part.implementation, f"{where}.target")
    return sampler_class(part.params, denoiser, guidance_class(guidance.params), joined)


def load_initial_weights(
    network: DiffusionTransformer, url: str, cache_dir: Path, *, force: bool = False
) -> None:
    """Fill the network from `load`: any layout that conversion knows, local or s3://.

    Args:
        force: modules that the file has nothing of keep their start, with a warning.
    """
    report = load_network_weights(network, fetch(url, cache_dir), force=force)
    log.info(
        "weights loaded",
        extra={"path": url, "layout": report.kind, "tensors": report.num_tensors},
    )


def choose_trainable(network: DiffusionTransformer, model: ModelConfig) -> TrainableReport:
    """Freeze what the configuration says, in place."""
    rules = TrainableRules(model.not_trainable_prefixes, model.lora_train)
    return select_trainable(list(network.named_parameters()), rules, sat_names)
