"""Write the network's weights for other tools: diffusers, PEFT, plain safetensors, SAT.

All take tensors by our names, from a network or from the fp32 masters of a checkpoint. Files are
written to the local disk; publishing them is up to the caller.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import yaml
from torch import Tensor

from app.checkpoint.tensor_file import write_tensors
from app.config.schema.model import DiTConfig, LoraConfig, PatchSize
from app.conversion import lora, sat_files
from app.conversion.architecture import NETWORK_KEY
from app.conversion.diffusers import to_diffusers, transformer_config
from app.conversion.sat import Layout, to_sat, unread_rows
from app.conversion.shard_files import MAX_SHARD_BYTES, cast, write_shards
from app.conversion.weights_file import SAT_RANK_FILE, SAT_TAG_FILE
from app.errors import ConfigError
from app.models.lora.merge import merged_tensors

DIFFUSERS_STEM = "diffusion_pytorch_model"
SAT_TAG = "1"  # the folder that `latest` names; upstream's released weights use it too


@dataclass(frozen=True, kw_only=True, slots=True)
class SatForm:
    """How a SAT checkpoint is laid out."""

    layout: Layout = "head"  # shape of the patch weight
    shards: int = 1  # tensor-parallel ranks


def export_diffusers(
    folder: Path,
    tensors: Mapping[str, Tensor],
    config: DiTConfig,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> list[Path]:
    """A folder that diffusers' CogVideoXTransformer3DModel.from_pretrained opens.

    LoRA pairs among the tensors are merged into the weights. More than `max_shard_bytes` becomes
    several files with an index.

    Returns:
        The files written.

    Raises:
        ConfigError: diffusers has no such network.
        WeightsError: tensors are missing.
    """
    converted = to_diffusers(without_pairs(tensors, config), config)
    folder.mkdir(parents=True, exist_ok=True)
    config_file = folder / "config.json"
    config_file.write_text(json.dumps(transformer_config(config), indent=2, sort_keys=True) + "\n")
    return [config_file, *write_shards(folder, DIFFUSERS_STEM, converted, dtype, max_shard_bytes)]


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
    fold_scale: bool = True,
) -> list[Path]:
    """A folder that diffusers, PEFT and tools that read tensors alone take as it was trained.

    Args:
        folder: made if it is not there.
        tensors: by our names; other tensors than pairs are left out.
        config: with the lora_config of the run that trained the pairs.
        dtype: of the files; None: as the tensors are.
        fold_scale: multiply B by alpha / r and write alpha = r; otherwise tools that ignore alpha
            take the pairs r / alpha times too strong.

    Returns:
        The files written; that of diffusers first.

    Raises:
        ConfigError: the network has no LoRA.
        WeightsError: pairs are missing.
    """
    if config.lora is None:
        raise ConfigError(
            "the network has no LoRA pairs to export",
            where="network_config.params.modules",
            fix="export the whole network instead, or name the run that trained a LoRA",
        )
    peft = lora.to_peft(tensors, config.lora, config.num_layers, fold_scale=fold_scale)
    return write_adapter(folder, peft, dtype)


def write_adapter(folder: Path, peft: lora.PeftFile, dtype: torch.dtype | None) -> list[Path]:
    """The files of an adapter: diffusers' one, and the two that PEFT opens as a folder."""
    config = folder / lora.PEFT_CONFIG
    first = write_adapter_file(folder / lora.FILE_NAME, peft, dtype)
    second = folder / lora.PEFT_FILE
    write_tensors(second, cast(peft.peft_tensors, dtype), peft.peft_metadata)
    config.write_text(json.dumps(peft.config, indent=2, sort_keys=True) + "\n")
    return [first, second, config]


def write_adapter_file(path: Path, peft: lora.PeftFile, dtype: torch.dtype | None) -> Path:
    """The file of diffusers alone, its folder made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, cast(peft.tensors, dtype), peft.metadata)
    return path


def export_sat(
    folder: Path,
    tensors: Mapping[str, Tensor],
    config: DiTConfig,
    form: SatForm | None = None,
    dtype: torch.dtype | None = None,
) -> list[Path]:
    """A SAT checkpoint folder with the network's tensors: `latest`, and a torch file per rank.

    With what upstream's loader would miss besides weights, and with the network's section of a
    model file, which we read back from there. Pairs alone become a file of pairs.

    Returns:
        The files written, `latest` last.

    Raises:
        ConfigError: the layout does not exist for this network, or so many ranks cannot share it.
        WeightsError: tensors are missing.
    """
    form = form or SatForm()
    if config.lora is not None and lora.are_pairs(tensors):
        return export_sat_lora(folder, tensors, config.lora, dtype)
    if config.num_attention_heads % form.shards:
        raise ConfigError(
            f"{config.num_attention_heads} attention heads cannot be shared by {form.shards} ranks",
            where="--shards",
            fix="use a divisor of the number of attention heads",
        )
    state = cast(to_sat(tensors, config.patch, form.layout), dtype)
    stored = next(iter(state.values())).dtype
    state |= unread_rows(config, form.layout, stored)
    section = sat_files.model_section(config, is_v1=form.layout == "v1")
    return _write_sat(folder, state, section, form.shards)


def export_sat_lora(
    folder: Path,
    pairs: Mapping[str, Tensor],
    lora_config: LoraConfig,
    dtype: torch.dtype | None = None,
) -> list[Path]:
    """A SAT checkpoint folder with LoRA pairs alone, and the section that says their alpha.

    Returns:
        The files written, `latest` last.

    Raises:
        WeightsError: these are not pairs.
    """
    any_patch = PatchSize(frames=1, rows=1, columns=1)  # no pair depends on it
    state = cast(to_sat(pairs, any_patch), dtype)
    return _write_sat(folder, state, sat_files.lora_section(lora_config), shards=1)


def _write_sat(
    folder: Path, state: Mapping[str, Tensor], section: Mapping[str, object], shards: int
) -> list[Path]:
    inside = folder / SAT_TAG
    inside.mkdir(parents=True, exist_ok=True)
    pieces = {name: sat_files.cut(tensor, name, shards) for name, tensor in state.items()}
    files = []
    for rank in range(shards):
        module = {name: _alone(slices[rank]) for name, slices in pieces.items()}
        files.append(inside / SAT_RANK_FILE.format(rank))
        torch.save({"module": module}, files[-1])
    described = folder / sat_files.FILE_NAME
    described.write_text(yaml.safe_dump(section, sort_keys=False))
    tag = folder / SAT_TAG_FILE
    tag.write_text(SAT_TAG)
    return [*files, described, tag]


def _alone(tensor: Tensor) -> Tensor:
    """Not part of something larger: torch saves all of the memory that a tensor is cut out of."""
    is_whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.itemsize
    return tensor if is_whole and tensor.is_contiguous() else tensor.clone()


def without_pairs(tensors: Mapping[str, Tensor], config: DiTConfig) -> dict[str, Tensor]:
    """The tensors with LoRA pairs, if there are any, merged into the weights."""
    if config.lora is None:
        return dict(tensors)
    return merged_tensors(tensors, config.lora.alpha / config.lora.rank)
