"""The model that `cogvx sample` samples from: its modules, weights and sizes."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from app.config.schema.diffusion import SamplerConfig
from app.config.schema.model import ModelConfig
from app.config.schema.run import RunConfig, SamplableRun
from app.config.snapshot import digest
from app.conversion.loading import load_lora_weights
from app.distributed.groups import ProcessGroups
from app.distributed.seeding import KeyedDraws
from app.evaluation.sampling import LatentShape
from app.models.conditioning import Conditioning
from app.models.dit.transformer import DiffusionTransformer
from app.run.build import DTYPES, InitialWeights, LoadOptions, build_modules, build_network
from app.run.sample.request import OwnOptions, VideoSize
from app.run.weights.export import ExportRequest, run_step, run_weights
from app.storage.fetch import fetch, file_version
from app.storage.node_disk import node_folder
from app.training.step import DiffusionModel, Randomness

log = logging.getLogger(__name__)

PIXELS_PER_LATENT = 8


def latent_shape(model: ModelConfig, size: VideoSize) -> LatentShape:
    """Latents of a video of this size."""
    network = model.network.params
    return LatentShape(
        frames=size.latent_frames,
        channels=network.out_channels,
        rows=size.rows // PIXELS_PER_LATENT,
        columns=size.columns // PIXELS_PER_LATENT,
        patch_frames=network.patch.frames,
    )


def check_size(model: ModelConfig, size: VideoSize) -> None:
    """Pass latents of this size through the network on the meta device: no weights, no memory.

    Raises:
        ShapeError: the network cannot make such a video.
    """
    config = replace(model.network.params, checkpoint_activations=False)
    network = DiffusionTransformer(config, device="meta")
    shape = latent_shape(model, size)
    frames = shape.frames + shape.padding
    latents = torch.empty(1, frames, shape.channels, shape.rows, shape.columns, device="meta")
    text = torch.empty(1, config.position.text_length, config.text_hidden_size, device="meta")
    extra = config.in_channels - config.out_channels
    image = torch.empty(*latents.shape[:2], extra, *latents.shape[3:], device="meta")
    ofs = torch.empty(1, device="meta") if config.ofs_embed_dim else None
    conditioning = Conditioning(text=text, image=image if extra else None, ofs=ofs)
    with torch.no_grad():
        network(latents, torch.empty(1, device="meta"), conditioning)


def load_model(config: SamplableRun, own: OwnOptions, groups: ProcessGroups) -> DiffusionModel:
    """Load all modules on this rank's device.

    Raises:
        InputMissingError: weights are not there.
        WeightsError: they do not fit the configuration.
    """
    model = _for_sampling(config.model)
    dtype = DTYPES[_precision(config)]
    network = _network(config, model, own, dtype)
    options = LoadOptions(groups.device, dtype, node_folder("weights"))
    modules = build_modules(model, network.to(groups.device).eval().requires_grad_(False), options)
    randomness = Randomness(draws=partial(KeyedDraws, int(str(config.arguments["seed"]))))
    return DiffusionModel(modules, model, randomness, device=groups.device, dtype=dtype)


def _for_sampling(model: ModelConfig) -> ModelConfig:
    """Without what only training needs."""
    network = replace(model.network.params, checkpoint_activations=False, model_parallel_size=1)
    return replace(model, network=replace(model.network, params=network), latent_input=False)


def _precision(config: RunConfig) -> str:
    arguments = config.arguments
    return "bf16" if arguments["bf16"] else "fp16" if arguments["fp16"] else "fp32"


def _network(
    config: RunConfig, model: ModelConfig, own: OwnOptions, dtype: torch.dtype
) -> DiffusionTransformer:
    cache = node_folder("weights")
    if own.run is not None:
        request = ExportRequest("safetensors", own.step, own.weights or "master")
        tensors = run_weights(own.run, request, cache)
        network = DiffusionTransformer(model.network.params, dtype=dtype)
        network.load_state_dict(tensors)
    else:
        url = str(config.arguments["load"])
        force = bool(config.arguments["force_inference"])
        weights = InitialWeights(url=url, is_resumed=False, force=force, seed=0, cache_dir=cache)
        network, _ = build_network(model, dtype, weights)
    if own.lora is not None:
        report = load_lora_weights(network, fetch(own.lora, cache))
        log.info("LoRA loaded", extra={"path": own.lora, "tensors": report.num_tensors})
    return network


def sample_settings(config: SamplableRun, own: OwnOptions) -> dict[str, Any]:
    """What the videos depend on, in JSON: weights with versions, and the whole model section."""
    files = {"lora": own.lora}
    if own.run is None:
        files["load"] = str(config.arguments["load"])
    model = config.model
    first_stage, text = model.first_stage.params, model.conditioner.text
    files |= {"vae": getattr(first_stage, "ckpt_path", None), "t5": text.model_dir}
    versions = {name: file_version(url) for name, url in files.items() if url}
    weights: dict[str, Any] = {name: url for name, url in files.items() if url}
    if own.run is not None:
        weights["run"] = own.run
        versions["run"] = f"step {run_step(own.run, own.step)}, {own.weights or 'master'}"
    sampler: SamplerConfig = model.sampler.params
    return {
        "weights": weights,
        "versions": versions,
        "precision": _precision(config),
        "sampler": model.sampler.target,
        "steps": sampler.num_steps,
        "guidance": sampler.guidance.params.scale,
        "model_sha256": digest(json.dumps(config.sections["model"], sort_keys=True, default=str)),
        "draws": config.compat.draws,
    }
