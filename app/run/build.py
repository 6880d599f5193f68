"""Build the parts of a run: classes that the configuration names, with their weights.

Nothing is imported by a name that did not come through the registry or a `--register` flag.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
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
    """Where parts live: device and dtype of the weights, and where remote files are kept."""

    device: torch.device
    dtype: torch.dtype
    cache_dir: Path


@dataclass(frozen=True, slots=True)
class InitialWeights:
    """Where the network's first weights come from.

    Attributes:
        url: `load`, any layout that conversion knows; None: from scratch.
        is_resumed: a checkpoint holds the trained ones, so only frozen ones are read.
        force: modules that the file has nothing of keep their start, with a warning.
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
    """The parts of the engine. Network aside, all are frozen."""

    network: DiffusionTransformer
    vae: Any
    conditioner: Conditioner
    loss: VideoDiffusionLoss
    sampler: Any


def build_modules(
    model: ModelConfig,
    network: DiffusionTransformer,
    place: LoadOptions,
    *,
    from_cache: bool = False,
) -> Modules:
    """Build the frozen parts with their weights around the network.

    Args:
        model: the section.
        network: with its weights.
        place: of the frozen parts.
        from_cache: clips come encoded, so parts that no step needs are loaded when they are asked
            for. Image-to-video keeps its VAE: it encodes the noised first frame in every step.
    """
    denoiser = Denoiser(model.denoiser)
    vae = build_vae if model.noised_image_input or not from_cache else _visiting_vae
    conditioner = _visiting_conditioner if from_cache else build_conditioner
    return Modules(
        network=network,
        vae=vae(model, place),
        conditioner=conditioner(model.conditioner, place),
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

    With weights to load it is filled straight in `dtype`, without a copy in fp32: rank 0 reads
    the file and every rank gets the tensors one by one, so all ranks call this together. From
    scratch it starts in fp32 on the CPU, by a generator of its own.

    Args:
        model: the section.
        dtype: of loaded weights.
        weights: where they come from.
        device: where loaded weights go.
        group: the ranks that share the network; this one keeps its part.
    """
    part = model.network
    network_class = load_class(part.implementation, "model.network_config.target")
    network: DiffusionTransformer = network_class(part.params, device="meta", dtype=dtype)
    report = choose_trainable(network, model)
    url = weights.url if report.frozen or not weights.is_resumed else None
    if url is None or weights.force:
        network = network_class(part.params)
        init_from_scratch(network, torch.Generator().manual_seed(weights.seed))
        report = choose_trainable(network, model)
    split_network(network, group)
    if url is not None:
        cache_dir = weights.cache_dir
        found = load_network_weights(
            network, partial(fetch, url, cache_dir), device, force=weights.force
        )
        facts = {"path": url, "layout": found.kind, "tensors": found.num_tensors}
        log.info("weights loaded", extra=facts)
    return network, report


def build_vae(model: ModelConfig, place: LoadOptions) -> Any:
    """The frozen VAE on its device, with the weights of `ckpt_path`."""
    part = model.first_stage
    where = "model.first_stage_config.target"
    vae_class = load_class(part.implementation, where, ("encode", "decode"))
    vae = vae_class(part.params)
    path = getattr(part.params, "ckpt_path", None)
    if path is not None:
        local = fetch(path, place.cache_dir)
        count = load_vae_weights(vae, local, part.params.ignore_keys)
        log.info("VAE loaded", extra={"path": path, "tensors": count})
    return vae.to(device=place.device, dtype=place.dtype).eval().requires_grad_(False)


def share_encoding(vae: Any, groups: ProcessGroups) -> None:
    """Let the ranks of `groups.clips` (cp_size) encode their clips together, in place."""
    clips, tensor = groups.clips, groups.tensor
    if clips.size > 1 and isinstance(vae, VideoAutoencoder):
        # Both kinds of group are neighbours, so one that divides the other lies inside it; and
        # ranks that share a network have the same batch.
        vae.share_encoding(clips, has_same_clip=tensor.size % clips.size == 0)


def build_conditioner(config: ConditionerConfig, place: LoadOptions) -> Conditioner:
    """The frozen text encoder with caption dropout."""
    where = "model.conditioner_config.params.emb_models[0].target"
    encoder_class = load_class(config.implementation, where, ("encode",))
    if config.params is not None:  # a registered class, which finds its own weights
        encoder = encoder_class(dict(config.params)).to(device=place.device, dtype=place.dtype)
        return Conditioner(encoder.eval().requires_grad_(False), config.ucg_rate)
    folder = fetch(config.text.model_dir, place.cache_dir)
    encoder = encoder_class.load(folder, config.text, place.dtype, place.device)
    log.info("text encoder loaded", extra={"path": config.text.model_dir})
    return Conditioner(encoder, config.ucg_rate)


def _visiting_vae(model: ModelConfig, place: LoadOptions) -> VisitingVae:
    return VisitingVae("VAE", lambda: build_vae(model, place))


def _visiting_conditioner(config: ConditionerConfig, place: LoadOptions) -> Conditioner:
    encoder = VisitingTextEncoder("text encoder", lambda: build_conditioner(config, place).encoder)
    return Conditioner(encoder, config.ucg_rate)


def build_sampler(part: Component[SamplerConfig], denoiser: Denoiser) -> Any:
    """The sampler with its guidance."""
    guidance = part.params.guidance
    where = "model.sampler_config"
    guidance_class = load_class(guidance.implementation, f"{where}.params.guider_config.target")
    sampler_class = load_class(part.implementation, f"{where}.target", ("sample",))
    return sampler_class(part.params, denoiser, guidance_class(guidance.params))


def choose_trainable(network: DiffusionTransformer, model: ModelConfig) -> TrainableReport:
    """Freeze what the configuration says, in place."""
    rules = TrainableRules(model.not_trainable_prefixes, model.lora_train)
    return select_trainable(list(network.named_parameters()), rules, sat_names)


class Visitor:
    """One part, built by `build` when first used after each `leave`."""

    def __init__(self, name: str, build: Callable[[], Any]) -> None:
        self._name = name
        self._build = build
        self._part: Any = None

    @property
    def is_here(self) -> bool:
        return self._part is not None

    def here(self) -> Any:
        """The part itself."""
        if self._part is None:
            log.info("loading for now", extra={"part": self._name})
            self._part = self._build()
        return self._part

    def leave(self) -> None:
        """Give its memory back."""
        if self._part is None:
            return
        self._part = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class VisitingVae(Visitor):
    """Offers what a training step and an evaluation ask of a VAE."""

    def encode(self, video: Tensor, samples_at_a_time: int | None = None) -> Any:
        return self.here().encode(video, samples_at_a_time)

    def decode(self, latents: Tensor) -> Tensor:
        decoded: Tensor = self.here().decode(latents)
        return decoded


class VisitingTextEncoder(Visitor):
    """Offers what a conditioner asks of its encoder."""

    def encode(self, captions: Sequence[str]) -> Tensor:
        embedded: Tensor = self.here().encode(captions)
        return embedded
