"""Tiny random weights in the real file formats: T5 folder, 3d-vae.pt, SAT transformer folder.

A program of its own (`python -m app.rehearsal.tiny_parts`), started as a child process, so that
the rest of this package stays without torch.

The VAE is not trained, but a clip still survives it as coloured blobs: its steps down and up
average and repeat, and the last layer of each half is fitted to a few painted scenes.

Axes: B batch, T frames, C channels, H rows, W columns; t latent frames.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from app.config.layers import merge_layers
from app.config.problems import Problems
from app.config.schema.encoders import VAEConfig
from app.config.schema.model import DiTConfig, ModelConfig
from app.config.sections.parse import parse_model
from app.conversion.sat import to_sat
from app.errors import CogvxError, ConfigError
from app.models.dit.initialization import init_from_scratch
from app.models.dit.transformer import DiffusionTransformer
from app.models.text.t5 import TinyT5, write_tiny_t5
from app.models.vae.autoencoder import VideoAutoencoder
from app.models.vae.blocks import Downsample, ResidualBlock, Upsample
from app.registry import TARGETS
from app.rehearsal.clips import (
    BACKGROUNDS,
    COLOURS,
    DIRECTIONS,
    SHAPES,
    Scene,
    all_captions,
    draw_scene,
)

SAT_ITERATION = "1"  # upstream's loader wants a folder named by an integer above zero
POSTERIOR_LOGVAR = -8.0  # a standard deviation 2% of that of the latents
SKETCH_SIZE = (48, 64)  # rows, columns of the scenes that the VAE is fitted to
SKETCH_FRAMES = 5
NUM_SKETCHES = 12
NOISE = 0.1  # share of the random weights that is kept where the image passes
END_GAIN = 5.0  # about the square root of the 27 taps that became one
RIDGE = 1e-3  # of the mean square of the features


@dataclass(frozen=True, slots=True)
class TinyParts:
    """Paths of the files."""

    t5: Path  # conditioner_config emb_models[0].params.model_dir
    vae: Path  # first_stage_config.params.ckpt_path
    transformer: Path  # args.load


def write_tiny_parts(folder: Path, model: ModelConfig, seed: int) -> TinyParts:
    """Write all parts for a configuration; the sizes are the configuration's.

    Args:
        folder: created if missing; gets `t5`, `vae` and `transformer`.
        model: a small one.
        seed: decides every number.
    """
    parts = TinyParts(folder / "t5", folder / "vae" / "3d-vae.pt", folder / "transformer")
    width = model.network.params.text_hidden_size
    write_tiny_t5(parts.t5, TinyT5(width=width), all_captions(), seed)
    parts.vae.parent.mkdir(parents=True, exist_ok=True)
    vae = make_tiny_vae(model.first_stage.params, seed)
    torch.save({"state_dict": vae.state_dict()}, parts.vae)
    _write_transformer(parts.transformer, model.network.params, seed)
    return parts


def _write_transformer(folder: Path, config: DiTConfig, seed: int) -> None:
    """The network in SAT's layout, without LoRA, like a released one."""
    network = DiffusionTransformer(replace(config, lora=None))
    init_from_scratch(network, torch.Generator().manual_seed(seed))
    states = to_sat(network.state_dict(), config.patch)
    tensors = {name: tensor.detach().clone() for name, tensor in states.items()}
    inside = folder / SAT_ITERATION
    inside.mkdir(parents=True, exist_ok=True)
    torch.save({"module": tensors}, inside / "mp_rank_00_model_states.pt")
    (folder / "latest").write_text(SAT_ITERATION)


@torch.no_grad()
def make_tiny_vae(config: VAEConfig, seed: int) -> VideoAutoencoder:
    """An untrained autoencoder whose latents have deviation 1 and whose output resembles its input.

    Args:
        config: any sizes that the architecture allows.
        seed: decides every number.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = VideoAutoencoder(config).requires_grad_(False)
        _keep_the_image(vae)
    clips = [_sketch(index, seed) for index in range(NUM_SKETCHES)]
    _fit_encoder(vae, clips)
    _fit_decoder(vae, clips)
    return vae


def _keep_the_image(vae: VideoAutoencoder) -> None:
    """Keep every pixel in its place: the shortcuts carry the image, averaged on the way down and
    repeated on the way up, and the layers at the ends use one position only."""
    for end in (vae.encoder.conv_in, vae.encoder.conv_out, vae.decoder.conv_in):
        point = end.conv.weight[:, :, -1, 1, 1] * END_GAIN  # the current frame comes last
        end.conv.weight.zero_()
        end.conv.weight[:, :, -1, 1, 1] = point
    for module in vae.modules():
        if isinstance(module, ResidualBlock):
            module.conv2.conv.weight.mul_(NOISE)
        elif isinstance(module, Downsample):
            _add_to_diagonal(module.conv.weight.mul_(NOISE), slice(0, 2), 0.25)
        elif isinstance(module, Upsample):
            _add_to_diagonal(module.conv.weight.mul_(NOISE), slice(1, 2), 1.0)


def _add_to_diagonal(weight: Tensor, taps: slice, value: float) -> None:
    """Add to `taps` x `taps` of (C, C, 3, 3), from every channel to itself."""
    for channel in range(len(weight)):
        weight[channel, channel, taps, taps] += value


def _sketch(index: int, seed: int) -> Tensor:
    """One painted scene (1, T, 3, H, W), -1 to 1; successive ones differ in every fact."""
    lists = (SHAPES, tuple(COLOURS), tuple(DIRECTIONS), BACKGROUNDS)
    scene = Scene(*(names[index % len(names)] for names in lists))
    frames = draw_scene(scene, SKETCH_SIZE, SKETCH_FRAMES, np.random.default_rng([seed, index]))
    return torch.from_numpy(frames).permute(0, 3, 1, 2)[None] / 127.5 - 1


def _fit_encoder(vae: VideoAutoencoder, clips: Sequence[Tensor]) -> None:
    """Scale the last layer so that every channel of the latents has mean 0 and deviation 1."""
    last = vae.encoder.conv_out.conv
    channels = vae.config.encoder.z_channels
    assert last.bias is not None
    latents = torch.cat([vae.encode(clip).mode().transpose(1, 2).flatten(2) for clip in clips], 2)
    mean, deviation = latents.mean(dim=(0, 2)), latents.std(dim=(0, 2)).clamp_min(1e-6)
    last.weight[:channels] /= deviation[:, None, None, None, None]
    last.bias[:channels] = (last.bias[:channels] - mean) / deviation
    last.weight[channels:] = 0
    last.bias[channels:] = POSTERIOR_LOGVAR


def _fit_decoder(vae: VideoAutoencoder, clips: Sequence[Tensor]) -> None:
    """Set the last layer to the least-squares map from its 3 x 3 surroundings to the pixels."""
    last = vae.decoder.conv_out
    seen: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    square = torch.zeros(1, dtype=torch.float64)
    product = torch.zeros(1, dtype=torch.float64)
    for clip in clips:
        seen.clear()
        vae.decode(vae.encode(clip).mode())
        frames = torch.cat(seen, dim=2)[0].transpose(0, 1)  # (T, C, H, W)
        features = functional.unfold(frames, 3, padding=1).transpose(1, 2).flatten(0, 1).double()
        features = functional.pad(features, (0, 1), value=1.0)  # the bias
        pixels = clip[0].permute(0, 2, 3, 1).flatten(0, 2).double()
        square = square + features.T @ features
        product = product + features.T @ pixels
    hook.remove()
    ridge = RIDGE * square.diagonal().mean() * torch.eye(len(square), dtype=torch.float64)
    solution = torch.linalg.solve(square + ridge, product).T.float()  # (3, C * 9 + 1)
    assert last.conv.bias is not None
    last.conv.weight.zero_()
    # The last of the three frames that the kernel sees is the current one.
    last.conv.weight[:, :, -1] = solution[:, :-1].unflatten(1, (-1, 3, 3))
    last.conv.bias.copy_(solution[:, -1])


def read_model_config(base: Sequence[str], overrides: Sequence[str]) -> ModelConfig:
    """Section `model` of merged YAML layers.

    Raises:
        ConfigErrors: everything that is wrong with it.
    """
    problems = Problems()
    sections = merge_layers(base, None, overrides, problems).sections
    problems.raise_errors()
    if "model" not in sections:
        raise ConfigError(
            "the files have no section 'model'",
            where=", ".join(base),
            fix="add the model's YAML file to --base",
        )
    return parse_model(sections["model"], "model", TARGETS, problems)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the parts; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m app.rehearsal.tiny_parts",
        description="Write random tiny weights in the real file formats.",
    )
    parser.add_argument("folder", type=Path, help="gets t5/, vae/3d-vae.pt and transformer/")
    parser.add_argument("--base", nargs="+", required=True, help="YAML layers, merged in order")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="model.key=value")
    parser.add_argument("--seed", type=int, default=0, help="decides every number")
    given = parser.parse_args(argv)
    try:
        write_tiny_parts(given.folder, read_model_config(given.base, given.set), given.seed)
    except CogvxError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
