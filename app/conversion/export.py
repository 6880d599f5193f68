"""Write the network's weights for other tools: diffusers, PEFT, plain safetensors, SAT.

All take tensors by our names, from a network or from the fp32 masters of a checkpoint. Files are
written where they are asked for, on the local disk; publishing them is the caller's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from app.checkpoint.tensor_file import write_tensors
from app.config.schema.model import DiTConfig
from app.conversion import lora
from app.conversion.diffusers import to_diffusers, transformer_config
from app.conversion.sat import Layout, to_sat
from app.conversion.weights_file import SAT_RANK_FILE, SAT_TAG_FILE
from app.errors import ConfigError
from app.models.lora.merge import merged_tensors

DIFFUSERS_FILE = "diffusion_pytorch_model.safetensors"
NETWORK_KEY = "cogvx.network"  # header entry of our own files: the network's config as JSON
SAT_TAG = "1"  # the folder that `latest` names; upstream's released weights use it too


def export_diffusers(
    folder: Path,
    tensors: Mapping[str, Tensor],
    config: DiTConfig,
    dtype: torch.dtype | None = None,
) -> list[Path]:
    """A folder that diffusers' CogVideoXTransformer3DModel.from_pretrained opens.

    LoRA pairs among the tensors are merged into the weights.

    Returns:
        The files written.

    Raises:
        ConfigError: diffusers has no such network.
        WeightsError: tensors are missing.
    """
    written = cast(to_diffusers(without_pairs(tensors, config), config), dtype)
    folder.mkdir(parents=True, exist_ok=True)
    config_file = folder / "config.json"
    config_file.write_text(json.dumps(transformer_config(config), indent=2, sort_keys=True) + "\n")
    write_tensors(folder / DIFFUSERS_FILE, written, {"format": "pt"})
    return [config_file, folder / DIFFUSERS_FILE]


def export_safetensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    config: DiTConfig,
    dtype: torch.dtype | None = None,
) -> Path:
    """One safetensors file by our names, pairs and all, as `load` takes it back."""
    metadata = {"format": "pt", NETWORK_KEY: json.dumps(asdict(config), sort_keys=True)}
    if config.lora is not None:
        metadata |= lora.lora_metadata(config.lora)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, cast(tensors, dtype), metadata)
    return path


def export_lora(
    folder: Path,
    tensors: Mapping[str, Tensor],
    config: DiTConfig,
    dtype: torch.dtype | None = None,
    *,
    fold_scale: bool = False,
) -> Path:
    """`pytorch_lora_weights.safetensors` for diffusers and PEFT, alpha included.

    Args:
        folder: made if it is not there.
        tensors: by our names; other tensors than pairs are left out.
        config: with the lora_config of the run that trained the pairs.
        dtype: of the file; None: as the tensors are.
        fold_scale: multiply B by alpha / r and write alpha = r, for tools that ignore alpha.

    Raises:
        ConfigError: the network has no LoRA.
        WeightsError: pairs are missing.
    """
    if config.lora is None:
        raise ConfigError(
            "the network has no LoRA pairs to export",
            where="network_config.params.modules",
            mend="export the whole network instead, or name the run that trained a LoRA",
        )
    peft = lora.to_peft(tensors, config.lora, config.num_layers, fold_scale=fold_scale)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / lora.FILE_NAME
    write_tensors(path, cast(peft.tensors, dtype), peft.metadata)
    return path


def export_sat(
    folder: Path,
    tensors: Mapping[str, Tensor],
    config: DiTConfig,
    layout: Layout = "head",
    dtype: torch.dtype | None = None,
) -> list[Path]:
    """A SAT checkpoint folder: `latest` and one torch file, with the network's tensors alone.

    Returns:
        The files written, `latest` last.

    Raises:
        ConfigError: the layout does not exist for this network.
        WeightsError: tensors are missing.
    """
    state = cast(to_sat(tensors, config.patch, layout), dtype)
    path = folder / SAT_TAG / SAT_RANK_FILE.format(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Rows cut out of a larger tensor would be saved with all of it.
    torch.save({"module": {name: t.clone() for name, t in state.items()}}, path)
    tag = folder / SAT_TAG_FILE
    tag.write_text(SAT_TAG)
    return [path, tag]


def without_pairs(tensors: Mapping[str, Tensor], config: DiTConfig) -> dict[str, Tensor]:
    """The tensors with LoRA pairs, if there are any, merged into the weights."""
    if config.lora is None:
        return dict(tensors)
    return merged_tensors(tensors, config.lora.alpha / config.lora.rank)


def cast(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The tensors in another float dtype; None leaves them as they are."""
    return {name: t.detach().to(dtype or t.dtype) for name, t in tensors.items()}
