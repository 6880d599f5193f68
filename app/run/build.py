"""Build the modules of a run: classes that the configuration names, with their weights.

Only names of the registry and of `--register` flags are imported.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.config.schema.diffusion import SamplerConfig
from app.config.schema.encoders import ConditionerConfig
from app.config.schema.model import ModelConfig
from app.config.target import Component, load_class
from app.conversion.loading import load_network_weights, load_vae_weights
from app.conversion.sat import sat_names
from app.diffusion.denoiser import Denoiser
from app.diffusion.loss import VideoDiffusionLoss
from app.distributed.groups import ProcessGroups
from app.distributed.rank_group import ALONE, RankGroup
from app.models.dit.initialization import init_from_scratch
from app.models.dit.parallel import split_network
from app.models.dit.transformer import DiffusionTransformer
from app.models.text.conditioner import Conditioner
from app.models.trainable import TrainableReport, TrainableRules, select_trainable
from app.models.vae.autoencoder import VideoAutoencoder
from app.storage.fetch import fetch

log = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """Device and dtype of the frozen weights, and where remote files are kept."""

    device: torch.device
    dtype: torch.dtype
    cache_dir: Path


@dataclass(frozen=True, slots=True)
class InitialWeights:
    """Where the network's first weights come from.

    Attributes:
        url: `load`, any layout that conversion knows; None: from scratch.
        is_resumed: a checkpoint has the trained ones, so only frozen ones are read.
        force: modules without weights in the file keep their initial ones, with a warning.
        seed: of the weights from scratch.
        cache_dir: where a remote file is kept.
    """

    url: str | None
    is_resumed: bool
    force: bool
    seed: int
    cache_dir: Path


@dataclass(frozen=True, slots=True)
class Modules:
    """What a DiffusionModel consists of. All but the network are frozen."""

    network: DiffusionTransformer
    vae: Any
    conditioner: Conditioner
    loss: VideoDiffusionLoss
    sampler: Any


def build_modules(
    model: ModelConfig,
    network: DiffusionTransformer,
    options: LoadOptions,
    *,
    from_cache: bool = False,
) -> Modules:
    """Build the frozen modules with their weights around the network.

    Args:
        model: the section.
        network: with its weights.
        options: of the frozen modules.
        from_cache: clips come encoded, so modules that no step needs are loaded on demand.
            Image-to-video keeps its VAE: it encodes the noised first frame in every step.
    """
    denoiser = Denoiser(model.denoiser)
    text = model.conditioner
    vae, encoder = partial(build_vae, model, options), partial(build_text_encoder, text, options)
    vae_is_needed = model.noised_image_input or not from_cache
    return Modules(
        network=network,
        vae=vae() if vae_is_needed else OnDemandModule("VAE", vae),
        conditioner=Conditioner(
            OnDemandModule("text encoder", encoder) if from_cache else encoder(), text.ucg_rate
        ),
        loss=VideoDiffusionLoss(model.loss, denoiser),
        sampler=build_sampler(model.sampler, denoiser),
    )


def build_network(
    model: ModelConfig,
    dtype: torch.dtype,
    weights: InitialWeights,
    *,
    device: torch.device | str = "cpu",
    group: RankGroup = ALONE,
) -> tuple[DiffusionTransformer, TrainableReport]:
    """The network with its first weights, and which of its parameters train (whole ones).

    Weights are loaded in `dtype`, without a copy in fp32: rank 0 reads the file and every rank
    gets the tensors one by one, so all ranks call this together. From scratch the network is
    initialized in fp32 on the CPU, with a generator of its own.

    Args:
        model: the section.
        dtype: of loaded weights.
        weights: where they come from.
        device: where loaded weights go.
        group: the ranks that share the network; this one keeps its part.
    """
    component = model.network
    network_class = load_class(component.implementation, "model.network_config.target")
    network: DiffusionTransformer = network_class(component.params, device="meta", dtype=dtype)
    report = choose_trainable(network, model)
    url = weights.url if report.frozen or not weights.is_resumed else None
    if url is None or weights.force:
        network = network_class(component.params)
        init_from_scratch(network, torch.Generator().manual_seed(weights.seed))
        report = choose_trainable(network, model)
    split_network(network, group)
    if url is not None:
        cache_dir = weights.cache_dir
        found = load_network_weights(
            network, partial(fetch, url, cache_dir), device, force=weights.force
        )
        extra = {"path": url, "layout": found.kind, "tensors": found.num_tensors}
        log.info("weights loaded", extra=extra)
    return network, report


def build_vae(model: ModelConfig, options: LoadOptions) -> Any:
    """The frozen VAE on its device, with the weights of `ckpt_path`."""
    component = model.first_stage
    where = "model.first_stage_config.target"
    vae_class = load_class(component.implementation, where, ("encode", "decode"))
    vae = vae_class(component.params)
    path = getattr(component.params, "ckpt_path", None)
    if path is not None:
        local = fetch(path, options.cache_dir)
        count = load_vae_weights(vae, local, component.params.ignore_keys)
        log.info("VAE loaded", extra={"path": path, "tensors": count})
    return vae.to(device=options.device, dtype=options.dtype).eval().requires_grad_(False)


def share_encoding(vae: Any, groups: ProcessGroups) -> None:
    """Let the ranks of `groups.clips` (cp_size) encode their clips together, in place."""
    clips, tensor = groups.clips, groups.tensor
    if clips.size > 1 and isinstance(vae, VideoAutoencoder):
        # Both kinds of group are consecutive ranks, so the smaller is part of the larger if its
        # size divides the other; ranks that share a network have the same batch.
        vae.share_encoding(clips, has_same_clip=tensor.size % clips.size == 0)


def build_text_encoder(config: ConditionerConfig, options: LoadOptions) -> Any:
    """The frozen text encoder on its device, with its weights."""
    where = "model.conditioner_config.params.emb_models[0].target"
    encoder_class = load_class(config.implementation, where, ("encode",))
    if config.params is not None:  # a registered class, which finds its own weights
        encoder = encoder_class(dict(config.params)).to(device=options.device, dtype=options.dtype)
        return encoder.eval().requires_grad_(False)
    folder = fetch(config.text.model_dir, options.cache_dir)
    encoder = encoder_class.load(folder, config.text, options.dtype, options.device)
    log.info("text encoder loaded", extra={"path": config.text.model_dir})
    return encoder


def build_sampler(component: Component[SamplerConfig], denoiser: Denoiser) -> Any:
    """The sampler with its guidance."""
    guidance = component.params.guidance
    where = "model.sampler_config"
    guidance_class = load_class(guidance.implementation, f"{where}.params.guider_config.target")
    sampler_class = load_class(component.implementation, f"{where}.target", ("sample",))
    return sampler_class(component.params, denoiser, guidance_class(guidance.params))


def choose_trainable(network: DiffusionTransformer, model: ModelConfig) -> TrainableReport:
    """Freeze what the configuration says, in place."""
    rules = TrainableRules(model.not_trainable_prefixes, model.lora_train)
    return select_trainable(list(network.named_parameters()), rules, sat_names)


class OnDemandModule:
    """A frozen VAE or text encoder, loaded by `build` when first used after each `offload`."""

    def __init__(self, name: str, build: Callable[[], Any]) -> None:
        self._name = name
        self._build = build
        self._module: Any = None

    def encode(self, *inputs: Any) -> Any:
        """`encode` of the module."""
        return self._loaded().encode(*inputs)

    def decode(self, latents: Tensor) -> Any:
        """`decode` of the module."""
        return self._loaded().decode(latents)

    def offload(self) -> None:
        """Free its memory."""
        self._module = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _loaded(self) -> Any:
        if self._module is None:
            log.info("loading on demand", extra={"what": self._name})
            self._module = self._build()
        return self._module
