"""Sizes of the 3D VAE: from tensors, and from and to the config.json of diffusers.

Axes: C channels of a level.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from app.config.schema.encoders import VAEConfig, VAEPartConfig
from app.conversion.diffusers import DIFFUSERS_VERSION, check_config
from app.conversion.misfit import Shapes
from app.errors import WeightsError

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
_DOWN_BLOCK = re.compile(r"encoder\.down\.(\d+)\.block\.(\d+)\.norm2\.weight")
# The frames that a level halves are averaged without any weight, so that no tensor tells them.
TIME_COMPRESSION = 4


def vae_config_of_shapes(shapes: Shapes, where: str) -> VAEConfig:
    """Sizes that tensors by the names of 3d-vae.pt have.

    Raises:
        WeightsError: this is no such VAE.
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
            mend="name 3d-vae.pt, a training checkpoint that holds it, or a diffusers VAE folder",
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
    check_config(content, CLASS_NAME, _FIXED, where)
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
            f"the config does not parse ({cause!r})", where=where, mend="fetch it again"
        ) from cause
    return VAEConfig(encoder=part, decoder=part)


def vae_json(config: VAEConfig, scale_factor: float, *, inverted: bool) -> dict[str, Any]:
    """The content of config.json.

    Args:
        config: sizes.
        scale_factor: of the latents.
        inverted: `invert_scale_latents`: the image latent of image-to-video is divided by the
            scale instead of multiplied (the released 1.5 folders).
    """
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
        "invert_scale_latents": inverted,
        "latent_channels": encoder.z_channels,
        "layers_per_block": encoder.num_res_blocks,
        "out_channels": config.decoder.out_ch,
        "sample_height": SAMPLE_ROWS,
        "sample_width": SAMPLE_COLUMNS,
        "scaling_factor": scale_factor,
        "temporal_compression_ratio": encoder.temporal_compress_times,
        "up_block_types": ["CogVideoXUpBlock3D"] * levels,
    }
