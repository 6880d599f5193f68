"""What belongs to SAT weights: a YAML file that describes the network, and slices for ranks.

A SAT file has no place for sizes that shapes do not give, nor for the alpha of LoRA. Upstream's
own training leaves the merged YAML of the run in the folder of its checkpoints, under this name; we
write the network's section there, so that our files can be read without naming a model file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from app.config.schema.model import DiTConfig, LoraConfig
from app.errors import ConfigError, WeightsError

FILE_NAME = "training_config.yaml"
_HERE = "dit_video_concat."
_POSITION_TARGETS = {
    "sincos3d": "Basic3DPositionEmbeddingMixin",
    "sincos2d": "Basic2DPositionEmbeddingMixin",
    "rope3d": "Rotary3DPositionEmbeddingMixin",
}


def model_section(config: DiTConfig, *, is_v1: bool = False) -> dict[str, Any]:
    """A layer of YAML with `model.network_config`, as the parser takes it.

    Args:
        config: of the network.
        is_v1: for upstream's code of 1.0, which knows no patch of several frames, no ofs, and the
            interpolation in the position's section.
    """
    modules = {
        "pos_embed_config": _position(config, is_v1=is_v1),
        "patch_embed_config": {
            "target": _HERE + "ImagePatchEmbeddingMixin",
            "params": {"text_hidden_size": config.text_hidden_size},
        },
        "adaln_layer_config": {
            "target": _HERE + "AdaLNMixin",
            "params": {"qk_ln": config.qk_norm},
        },
        "final_layer_config": {"target": _HERE + "FinalLayerMixin"},
    }
    if config.lora is not None:
        modules["lora_config"] = _lora(config.lora)
    patch = config.patch
    params: dict[str, Any] = {
        "num_layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "patch_size": patch.rows if is_v1 else [patch.frames, patch.rows, patch.columns],
        "num_frames": config.num_frames,
        "time_compressed_rate": config.time_compressed_rate,
        "latent_height": config.latent_height,
        "latent_width": config.latent_width,
        "time_embed_dim": config.time_embed_dim,
        "elementwise_affine": config.elementwise_affine,
        "use_SwiGLU": config.swiglu,
        "use_RMSNorm": config.rms_norm,
        "transformer_args": {
            "checkpoint_activations": config.checkpoint_activations,
            "inner_hidden_size": config.inner_hidden_size,
        },
        "modules": modules,
    }
    if not is_v1:
        params |= {"ofs_embed_dim": config.ofs_embed_dim, **_interpolation(config)}
    return _layer({"target": _HERE + "DiffusionTransformer", "params": params})


def lora_section(lora: LoraConfig) -> dict[str, Any]:
    """A layer of YAML that turns LoRA on over a model file: rank, alpha and layers of the pairs."""
    return _layer({"params": {"modules": {"lora_config": _lora(lora)}}})


def _layer(network: dict[str, Any]) -> dict[str, Any]:
    return {"model": {"network_config": network}}


def _interpolation(config: DiTConfig) -> dict[str, float]:
    position = config.position
    return {
        "height_interpolation": position.height_interpolation,
        "width_interpolation": position.width_interpolation,
        "time_interpolation": position.time_interpolation,
    }


def _position(config: DiTConfig, *, is_v1: bool) -> dict[str, Any]:
    position = config.position
    params: dict[str, Any] = {"text_length": position.text_length}
    if is_v1:
        params |= {key: factor for key, factor in _interpolation(config).items() if factor != 1.0}
    if position.kind == "rope3d":
        params |= {
            "hidden_size_head": config.head_dim,
            "learnable_pos_embed": position.learnable,
        }
    return {"target": _HERE + _POSITION_TARGETS[position.kind], "params": params}


def _lora(lora: LoraConfig) -> dict[str, Any]:
    params: dict[str, Any] = {"r": lora.rank, "lora_alpha": lora.alpha}
    if lora.dropout:
        params["lora_dropout"] = lora.dropout
    if lora.layer_range is not None:
        params["layer_range"] = list(lora.layer_range)
    return {"target": "sat.model.finetune.lora2.LoraMixin", "params": params}


_QKV = re.compile(r".*\.query_key_value\.(?:original\.)?(?:weight|bias)")
_ROWS = re.compile(
    r".*\.dense_h_to_4h\.(?:weight|bias)|.*\.swiglu\.w2\.\d+\.weight"
    r"|.*\.query_key_value\.matrix_B\.\d+"
)
_COLUMNS = re.compile(r".*\.(?:attention\.dense|dense_4h_to_h)\.(?:original\.)?weight")


class ShardedTensors(Mapping[str, Tensor]):
    """The whole tensors of several ranks' state dicts, put together when they are read."""

    def __init__(self, shards: Sequence[Mapping[str, Tensor]], where: str) -> None:
        """Take the state dicts in rank order.

        Raises:
            WeightsError: the ranks do not have the same names.
        """
        self._shards = shards
        for rank, shard in enumerate(shards):
            different = set(shard) ^ set(shards[0])
            if different:
                raise WeightsError(
                    f"rank {rank} and rank 0 differ in {sorted(different)[0]}",
                    where=where,
                    fix="fetch all mp_rank_*_model_states.pt of one checkpoint",
                )

    def __getitem__(self, name: str) -> Tensor:
        return joined_tensor([shard[name] for shard in self._shards], name)

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self._shards[0])

    def __len__(self) -> int:
        return len(self._shards[0])


def joined_tensor(parts: Sequence[Tensor], name: str) -> Tensor:
    """One tensor from its slices in rank order; the first one where all ranks have the same."""
    if len(parts) == 1:
        return parts[0]
    if _QKV.fullmatch(name):
        thirds = [part.chunk(3) for part in parts]
        return torch.cat([third[index] for index in range(3) for third in thirds])
    if _ROWS.fullmatch(name):
        return torch.cat(list(parts))
    if _COLUMNS.fullmatch(name):
        return torch.cat(list(parts), dim=1)
    return parts[0]


def cut(tensor: Tensor, name: str, count: int) -> list[Tensor]:
    """The slices of `count` ranks, of which `joined_tensor` makes the tensor again.

    Raises:
        ConfigError: rows or columns do not divide into that many.
    """
    if count == 1:
        return [tensor]
    if _QKV.fullmatch(name):
        thirds = [_equal(third, count, 0, name) for third in tensor.chunk(3)]
        return [torch.cat([third[rank] for third in thirds]) for rank in range(count)]
    if _ROWS.fullmatch(name):
        return _equal(tensor, count, 0, name)
    if _COLUMNS.fullmatch(name):
        return _equal(tensor, count, 1, name)
    return [tensor] * count


def _equal(tensor: Tensor, count: int, axis: int, name: str) -> list[Tensor]:
    if tensor.shape[axis] % count:
        raise ConfigError(
            f"{name} has {tensor.shape[axis]} {('rows', 'columns')[axis]}, which {count} ranks "
            "cannot share",
            where="--shards",
            fix="use a divisor of the number of attention heads",
        )
    return list(tensor.chunk(count, dim=axis))
