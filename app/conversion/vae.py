"""Tensor names of the 3D VAE: 3d-vae.pt (which are ours) and diffusers' AutoencoderKLCogVideoX.

No tensor is reshaped. diffusers counts the decoder's levels from the smallest image up, SAT from
the largest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.config.schema.encoders import VAEConfig, VAEPartConfig
from app.conversion.diffusers import DIFFUSERS_VERSION, check_config
from app.conversion.misfit import Shapes, check_fit, shapes_of
from app.conversion.rules import Drop, Rename, Rule, apply_rules, inverse
from app.conversion.shard_files import MAX_SHARD_BYTES, cast, write_shards
from app.conversion.weights_file import WeightsFile, open_weights, read_json
from app.errors import WeightsError
from app.models.vae.autoencoder import VideoAutoencoder

SAT_FILE = "3d-vae.pt"
DIFFUSERS_STEM = "diffusion_pytorch_model"
IGNORED = ("loss.",)  # the discriminator of the VAE's own training
SAT_PREFIX = "first_stage_model."  # inside a training checkpoint
_UP_BLOCK = re.compile(r"decoder\.up_blocks\.(\d+)\..*")
_UP = re.compile(r"decoder\.up\.(\d+)\..*")
CLASS_NAME = "AutoencoderKLCogVideoX"
# Sizes that tiled decoding takes its tiles from, in pixels; the released folders all say this.
SAMPLE_ROWS, SAMPLE_COLUMNS = 480, 720
_FIXED: dict[str, Any] = {
    "act_fn": "silu",
    "latents_mean": None,
    "latents_std": None,
    "norm_eps": 1e-6,
    "norm_num_groups": 32,
    "shift_factor": None,
    "use_post_quant_conv": False,
    "use_quant_conv": False,
}
_KEYS = (
    *("block_out_channels", "down_block_types", "up_block_types", "layers_per_block"),
    *("in_channels", "out_channels", "latent_channels", "temporal_compression_ratio"),
    *("sample_height", "sample_width", "scaling_factor", "invert_scale_latents", "force_upcast"),
)
_DOWN_BLOCK = re.compile(r"encoder\.down\.(\d+)\.block\.(\d+)\.norm2\.weight")
# Levels that halve the frames average them without weights, so no tensor shows which do.
TIME_COMPRESSION = 4


@dataclass(frozen=True, slots=True)
class LatentScale:
    """What latents are multiplied by before the network sees them."""

    factor: float
    is_inverted: bool = False  # image latents are divided by it instead: `invert_scale_latents`


@dataclass(frozen=True, slots=True)
class VaeWeights:
    """A VAE as read from its files."""

    tensors: Mapping[str, Tensor]  # by the names of 3d-vae.pt
    config: VAEConfig
    scale: LatentScale | None = None  # where the files say it (diffusers)


def vae_rules(levels: int) -> tuple[Rule, ...]:
    """3d-vae.pt -> diffusers, for a decoder with that many levels."""
    rules: list[Rule] = [Drop("loss.{rest}", why="the discriminator of the VAE's own training")]
    for half in ("encoder", "decoder"):
        rules += [
            Rename(f"{half}.conv_in.{{rest}}", f"{half}.conv_in.{{rest}}"),
            Rename(f"{half}.conv_out.{{rest}}", f"{half}.conv_out.{{rest}}"),
            Rename(f"{half}.norm_out.{{rest}}", f"{half}.norm_out.{{rest}}"),
            Rename(f"{half}.mid.block_1.{{rest}}", f"{half}.mid_block.resnets.0.{{rest}}"),
            Rename(f"{half}.mid.block_2.{{rest}}", f"{half}.mid_block.resnets.1.{{rest}}"),
        ]
    rules += _level("encoder.down.{i}", "encoder.down_blocks.{i}", "downsample")
    for level in range(levels):
        rules += _level(
            f"decoder.up.{level}", f"decoder.up_blocks.{levels - 1 - level}", "upsample"
        )
    return tuple(rules)


def _level(ours: str, theirs: str, resample: str) -> list[Rule]:
    """One resolution; the more special name first."""
    return [
        Rename(
            ours + ".block.{j}.nin_shortcut.{p}",
            theirs + ".resnets.{j}.conv_shortcut.{p}",
            required=False,
        ),
        Rename(ours + ".block.{j}.{rest}", theirs + ".resnets.{j}.{rest}"),
        Rename(f"{ours}.{resample}.{{rest}}", f"{theirs}.{resample}rs.0.{{rest}}", required=False),
    ]


def vae_to_diffusers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The diffusers state dict of a VAE by our names.

    Raises:
        WeightsError: a tensor is unknown, or a whole part is missing.
    """
    rules = vae_rules(_levels(tensors, _UP))
    return dict(apply_rules(tensors, tensors.__getitem__, rules, "the VAE's tensors"))


def vae_from_diffusers(
    names: Iterable[str], read: Callable[[str], Tensor], where: str
) -> Iterator[tuple[str, Tensor]]:
    """Our names and tensors of a diffusers VAE.

    Raises:
        WeightsError: a tensor is unknown, or a whole part is missing.
    """
    names = list(names)
    yield from apply_rules(names, read, inverse(vae_rules(_levels(names, _UP_BLOCK))), where)


def vae_tensors(
    file: WeightsFile, read: Callable[[str], Tensor], ignore_keys: tuple[str, ...]
) -> Iterator[tuple[str, Tensor]]:
    """Our names and tensors of the VAE in a file of either layout.

    Args:
        file: 3d-vae.pt, a training checkpoint that holds it, or diffusers' weights.
        read: one of the file's two ways to read a tensor.
        ignore_keys: prefixes of names that are left out (the discriminator: `loss`).
    """
    stored = vae_names(file.names, ignore_keys)

    def read_ours(name: str) -> Tensor:
        return read(stored[name])

    if any("down_blocks." in name for name in stored):
        return vae_from_diffusers(stored, read_ours, file.where)
    return ((name, read_ours(name)) for name in stored)


def vae_names(names: Iterable[str], ignore_keys: tuple[str, ...] = ()) -> dict[str, str]:
    """Names without the prefix of a training checkpoint, each with the name in the file.

    Args:
        names: in the file; where some have the prefix, the others are not the VAE's.
        ignore_keys: prefixes of names that are left out (the discriminator: `loss`).
    """
    names = list(names)
    inside = [name for name in names if name.startswith(SAT_PREFIX)]
    stored = {name.removeprefix(SAT_PREFIX): name for name in inside or names}
    return {
        name: full
        for name, full in stored.items()
        if not (ignore_keys and name.startswith(ignore_keys))
    }


def _levels(names: Iterable[str], pattern: re.Pattern[str]) -> int:
    found = (pattern.fullmatch(name) for name in names)
    return 1 + max((int(match[1]) for match in found if match), default=0)


def vae_config_of_shapes(shapes: Shapes, where: str) -> VAEConfig:
    """Sizes that tensors by the names of 3d-vae.pt have.

    Raises:
        WeightsError: these are not tensors of such a VAE.
    """
    widths: dict[int, int] = {}
    blocks = 0
    for name, shape in shapes.items():
        found = _DOWN_BLOCK.fullmatch(name)
        if found:
            widths[int(found[1])] = shape[0]
            blocks = max(blocks, int(found[2]) + 1)
    names = ("encoder.conv_in", "decoder.conv_in", "decoder.conv_out")
    first, last, out = (shapes.get(f"{name}.conv.weight") for name in names)
    if not widths or first is None or last is None or out is None:
        raise WeightsError(
            "no tensors of the 3D VAE (encoder.down.*, decoder.up.*)",
            where=where,
            fix="name 3d-vae.pt, a training checkpoint that holds it, or a diffusers VAE folder",
        )
    part = VAEPartConfig(
        ch=first[0],
        ch_mult=tuple(widths[level] // first[0] for level in sorted(widths)),
        num_res_blocks=blocks,
        z_channels=last[1],
        in_channels=first[1],
        out_ch=out[0],
        temporal_compress_times=TIME_COMPRESSION,
    )
    return VAEConfig(encoder=part, decoder=part)


def vae_config_of_json(content: Mapping[str, Any], where: str) -> VAEConfig:
    """The VAE that a config.json of diffusers describes.

    Raises:
        WeightsError: it is of another class, or of a variant that was never released.
    """
    check_config(content, CLASS_NAME, _FIXED, where, known=_KEYS)
    try:
        widths = [int(width) for width in content.get("block_out_channels", (128, 256, 256, 512))]
        part = VAEPartConfig(
            ch=widths[0],
            ch_mult=tuple(width // widths[0] for width in widths),
            num_res_blocks=int(content.get("layers_per_block", 3)),
            z_channels=int(content.get("latent_channels", 16)),
            in_channels=int(content.get("in_channels", 3)),
            out_ch=int(content.get("out_channels", 3)),
            temporal_compress_times=int(content.get("temporal_compression_ratio", 4)),
        )
    except (TypeError, ValueError, IndexError) as cause:
        raise WeightsError(
            f"the config does not parse ({cause!r})", where=where, fix="fetch it again"
        ) from cause
    return VAEConfig(encoder=part, decoder=part)


def vae_json(config: VAEConfig, scale: LatentScale) -> dict[str, Any]:
    """The content of config.json."""
    encoder = config.encoder
    levels = len(encoder.ch_mult)
    return {
        "_class_name": CLASS_NAME,
        "_diffusers_version": DIFFUSERS_VERSION,
        **_FIXED,
        "block_out_channels": [encoder.ch * factor for factor in encoder.ch_mult],
        "down_block_types": ["CogVideoXDownBlock3D"] * levels,
        "force_upcast": True,
        "in_channels": encoder.in_channels,
        "invert_scale_latents": scale.is_inverted,
        "latent_channels": encoder.z_channels,
        "layers_per_block": encoder.num_res_blocks,
        "out_channels": config.decoder.out_ch,
        "sample_height": SAMPLE_ROWS,
        "sample_width": SAMPLE_COLUMNS,
        "scaling_factor": scale.factor,
        "temporal_compression_ratio": encoder.temporal_compress_times,
        "up_block_types": ["CogVideoXUpBlock3D"] * levels,
    }


def read_vae(path: Path) -> VaeWeights:
    """Read 3d-vae.pt, a training checkpoint, a diffusers VAE folder or a pipeline folder.

    Raises:
        InputMissingError: there is nothing to open.
        WeightsError: it holds no such VAE, or not all of one.
    """
    folder = path / "vae" if (path / "vae").is_dir() else path
    inside = folder / SAT_FILE if (folder / SAT_FILE).is_file() else folder
    described = read_json(folder / "config.json") if folder.is_dir() else None
    with open_weights(inside) as file:
        tensors = dict(vae_tensors(file, file.read, IGNORED))
        shapes = shapes_of(tensors)
        if described is None:
            config = vae_config_of_shapes(shapes, file.where)
        else:
            config = vae_config_of_json(described, str(folder / "config.json"))
        with torch.device("meta"):
            wanted = shapes_of(VideoAutoencoder(config).state_dict())
        what = "the VAE that its own sizes describe"
        fix = "the file is incomplete or of another VAE: fetch it again"
        check_fit(wanted, shapes, file.where, what=what, fix=fix)
    scale: LatentScale | None = None
    if described is not None and described.get("scaling_factor") is not None:
        inverted = bool(described.get("invert_scale_latents"))
        scale = LatentScale(described["scaling_factor"], inverted)
    return VaeWeights(tensors, config, scale)


def export_vae_sat(path: Path, vae: VaeWeights, dtype: torch.dtype | None = None) -> list[Path]:
    """3d-vae.pt, as `first_stage_config.params.ckpt_path` names it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {n: t.clone() for n, t in cast(vae.tensors, dtype).items()}}, path)
    return [path]


def export_vae_diffusers(
    folder: Path,
    vae: VaeWeights,
    scale: LatentScale,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> list[Path]:
    """A folder that diffusers' AutoencoderKLCogVideoX.from_pretrained opens."""
    folder.mkdir(parents=True, exist_ok=True)
    content = vae_json(vae.config, scale)
    config_file = folder / "config.json"
    config_file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    tensors = vae_to_diffusers(vae.tensors)
    return [config_file, *write_shards(folder, DIFFUSERS_STEM, tensors, dtype, max_shard_bytes)]
