"""The 3D VAE as files: 3d-vae.pt, inside a training checkpoint, and as a diffusers folder.

Read and written by the names of 3d-vae.pt, which are ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from app.config.schema.encoders import VAEConfig
from app.conversion.misfit import compare, error_of
from app.conversion.shard_files import MAX_SHARD_BYTES, cast, write_shards
from app.conversion.vae import vae_from_diffusers, vae_names, vae_to_diffusers
from app.conversion.vae_config import vae_config_of_json, vae_config_of_shapes, vae_json
from app.conversion.weights_file import open_weights, read_json
from app.errors import WeightsError
from app.models.vae.autoencoder import VideoAutoencoder

SAT_FILE = "3d-vae.pt"
DIFFUSERS_STEM = "diffusion_pytorch_model"
IGNORED = ("loss.",)  # the discriminator of the VAE's own training


@dataclass(frozen=True, slots=True)
class VaeWeights:
    """A VAE that was read."""

    tensors: Mapping[str, Tensor]  # by the names of 3d-vae.pt
    config: VAEConfig
    scale_factor: float | None  # where the files say it (diffusers)
    is_inverted: bool | None  # `invert_scale_latents`, likewise


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
        stored = vae_names(file.names, IGNORED)
        if any("down_blocks." in name for name in stored):
            tensors = dict(vae_from_diffusers(stored, lambda n: file.read(stored[n]), file.where))
        else:
            tensors = {name: file.read(full) for name, full in stored.items()}
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if described is None:
            config = vae_config_of_shapes(shapes, file.where)
        else:
            config = vae_config_of_json(described, str(folder / "config.json"))
        with torch.device("meta"):
            wanted = {n: tuple(p.shape) for n, p in VideoAutoencoder(config).named_parameters()}
        misfit = compare(wanted, shapes)
        if misfit:
            found = error_of(misfit, wanted, shapes, file.where)
            raise WeightsError(
                found.what.replace("the network", "the VAE that its own sizes describe"),
                where=found.where,
                mend="the file is incomplete or of another VAE: fetch it again",
            )
    scale = None if described is None else described.get("scaling_factor")
    inverted = None if described is None else described.get("invert_scale_latents")
    return VaeWeights(tensors, config, scale, inverted)


def export_vae_sat(path: Path, vae: VaeWeights, dtype: torch.dtype | None = None) -> list[Path]:
    """3d-vae.pt, as `first_stage_config.params.ckpt_path` names it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {n: t.clone() for n, t in cast(vae.tensors, dtype).items()}}, path)
    return [path]


def export_vae_diffusers(
    folder: Path,
    vae: VaeWeights,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> list[Path]:
    """A folder that diffusers' AutoencoderKLCogVideoX.from_pretrained opens."""
    assert vae.scale_factor is not None, "the caller knows the model"
    folder.mkdir(parents=True, exist_ok=True)
    content = vae_json(vae.config, vae.scale_factor, inverted=bool(vae.is_inverted))
    config_file = folder / "config.json"
    config_file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    tensors = vae_to_diffusers(vae.tensors)
    return [config_file, *write_shards(folder, DIFFUSERS_STEM, tensors, dtype, max_shard_bytes)]
