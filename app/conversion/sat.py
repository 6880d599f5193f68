"""Tensor names of SAT checkpoints, both ways.

Two layouts exist: `v1` (the released 1.0 files) keeps the patch weight as a Conv2d weight
(h, C, p, q), `head` as (h, C * o * p * q). Reading takes both. A LoRA layer stores its base weight
under `original.` and the pairs under `matrix_A.{0,1,2}` and `matrix_B.{0,1,2}` (q, k, v).

Axes: h hidden width, C channels, (o, p, q) patch frames, rows, columns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor

from app.config.schema.model import DiTConfig, PatchSize
from app.conversion.lora import are_pairs
from app.conversion.rules import (
    Drop,
    Rename,
    Reshape,
    Rule,
    Split,
    apply_rules,
    counterparts,
    inverse,
)
from app.errors import ConfigError, WeightsError
from app.models.dit.rotary import rotation_for
from app.models.dit.tokens import PatchGrid

Layout = Literal["head", "v1"]

PREFIX = "model.diffusion_model."
COMPILED = "_orig_mod."  # torch.compile's wrapper, when upstream's compile_model was on
UNUSED_ROWS = 64  # of position_embeddings: max_sequence_length of every released model file
OUTSIDE = ("conditioner.", "first_stage_model.", "loss_fn.", "denoiser.")  # T5, VAE and the rest

_LAYER = "transformer.layers.{i}."
_MIXIN = "mixins.adaln_layer."
_ATTENTION = "blocks.{i}.attention."

DIT: tuple[Rule, ...] = (
    Rename("time_embed.{j}.{p}", "time_embed.{j}.{p}"),
    Rename("ofs_embed.{j}.{p}", "ofs_embed.{j}.{p}", required=False),
    Reshape("mixins.patch_embed.proj.weight", "patch.video.weight"),
    Rename("mixins.patch_embed.proj.bias", "patch.video.bias"),
    Rename("mixins.patch_embed.text_proj.{p}", "patch.text.{p}"),
    Rename("mixins.pos_embed.pos_embedding", "position.table", required=False),
    Rename(_LAYER + "input_layernorm.{p}", "blocks.{i}.norm_attention.{p}", required=False),
    Rename(_LAYER + "post_attention_layernorm.{p}", "blocks.{i}.norm_mlp.{p}", required=False),
    Rename(_MIXIN + "adaLN_modulations.{i}.1.{p}", "blocks.{i}.modulation.{p}"),
    Split(
        _LAYER + "attention.query_key_value.{p}",
        (_ATTENTION + "q.{p}", _ATTENTION + "k.{p}", _ATTENTION + "v.{p}"),
    ),
    Rename(_LAYER + "attention.dense.{p}", _ATTENTION + "out.{p}"),
    Rename(_MIXIN + "query_layernorm_list.{i}.{p}", _ATTENTION + "norm_q.{p}", required=False),
    Rename(_MIXIN + "key_layernorm_list.{i}.{p}", _ATTENTION + "norm_k.{p}", required=False),
    Rename(_LAYER + "mlp.dense_h_to_4h.{p}", "blocks.{i}.mlp.up.{p}"),
    Rename(_LAYER + "mlp.dense_4h_to_h.{p}", "blocks.{i}.mlp.down.{p}"),
    Rename("mixins.swiglu.w2.{i}.weight", "blocks.{i}.mlp.gate.weight", required=False),
    Rename("transformer.final_layernorm.{p}", "norm.{p}", required=False),
    Rename("mixins.final_layer.norm_final.{p}", "final.norm.{p}", required=False),
    Rename("mixins.final_layer.adaLN_modulation.1.{p}", "final.modulation.{p}"),
    Rename("mixins.final_layer.linear.{p}", "final.linear.{p}"),
    Drop("transformer.position_embeddings.weight", why="never read by a RoPE model"),
    Drop("mixins.pos_embed.freqs_sin", why="computed from the size of the latents"),
    Drop("mixins.pos_embed.freqs_cos", why="computed from the size of the latents"),
)

LORA: tuple[Rule, ...] = tuple(
    Rename(
        f"{_LAYER}attention.{module}.matrix_{letter.upper()}.{index}",
        f"{_ATTENTION}{projection}.lora_{letter}",
        required=False,
    )
    for module, index, projection in (
        ("query_key_value", 0, "q"),
        ("query_key_value", 1, "k"),
        ("query_key_value", 2, "v"),
        ("dense", 0, "out"),
    )
    for letter in "ab"
)

_LORA_KEY = re.compile(r".*\.matrix_[AB]\.\d+")
_LORA_BASE = re.compile(r"(.*\.attention\.(?:query_key_value|dense))\.(weight|bias)")
_BACKWARD = inverse(DIT + LORA)


def from_sat(
    names: Iterable[str], read: Callable[[str], Tensor], where: str
) -> Iterator[tuple[str, Tensor]]:
    """Our names and tensors of a SAT state dict.

    Text encoder and VAE entries of a training checkpoint are passed over, prefixes of the engine
    and of torch.compile are taken off, and a base checkpoint and a LoRA checkpoint give the same
    base names. A file with LoRA pairs alone is converted as such.

    Raises:
        WeightsError: the file is not the checkpoint of such a network.
    """
    stored = network_names(names, where)
    partial = all(_LORA_KEY.fullmatch(name) for name in stored)
    yield from apply_rules(
        stored, lambda name: read(stored[name]), DIT + LORA, where, partial=partial
    )


def network_names(names: Iterable[str], where: str) -> dict[str, str]:
    """Names of the network without prefix and `original.`, each with the name in the file.

    Raises:
        WeightsError: there are none, or two names fall together.
    """
    stored: dict[str, str] = {}
    for name in names:
        if name.startswith(OUTSIDE):
            continue
        short = name.removeprefix(PREFIX).removeprefix(COMPILED).replace(".original.", ".")
        if short in stored:
            raise WeightsError(
                f"{name} and {stored[short]} are the same tensor",
                where=where,
                fix="remove one of the two",
            )
        stored[short] = name
    if not stored:
        raise WeightsError(
            f"no tensor of the network ({PREFIX}*)",
            where=where,
            fix="this may be a text encoder or VAE file; `load` takes the transformer's",
        )
    return stored


def to_sat(
    tensors: Mapping[str, Tensor], patch: PatchSize, layout: Layout = "head"
) -> dict[str, Tensor]:
    """SAT state dict, engine prefix included, of tensors by our names (all, or LoRA pairs alone).

    Raises:
        ConfigError: layout v1 with a patch of more than one frame, or one that is not square,
            which 1.0 does not have.
        WeightsError: tensors are missing.
    """
    if layout == "v1" and patch.frames != 1:
        raise ConfigError(
            f"a patch of {patch.frames} frames has no v1 layout",
            where="--layout",
            fix="use head: 1.5 models exist in that layout only",
        )
    if layout == "v1" and patch.rows != patch.columns:
        raise ConfigError(
            f"a patch of {patch.rows} x {patch.columns} has no v1 layout: that has squares",
            where="--layout",
            fix="use head",
        )
    trailing = (patch.rows, patch.columns) if layout == "v1" else None
    rules = inverse(_with_patch_layout(trailing))
    partial = are_pairs(tensors)
    converted = dict(
        apply_rules(tensors, tensors.__getitem__, rules, "the network's tensors", partial=partial)
    )
    return {PREFIX + _original(name, converted): tensor for name, tensor in converted.items()}


def unread_rows(config: DiTConfig, layout: Layout, dtype: torch.dtype) -> dict[str, Tensor]:
    """What upstream's modules hold besides weights, prefix included; its loader misses them.

    Rotary models have an embedding that nothing reads; those of 1.0 also their tables of angles,
    which the code of that time takes from the file. The tables stay in fp32.
    """
    if config.position.kind != "rope3d":
        return {}
    embedding = torch.zeros(UNUSED_ROWS, config.hidden_size, dtype=dtype)
    rows = {PREFIX + "transformer.position_embeddings.weight": embedding}
    if layout == "v1":
        angles = rotation_for(PatchGrid(*config.grid), config.head_dim, torch.zeros(()))
        rows[PREFIX + "mixins.pos_embed.freqs_sin"] = angles.sin
        rows[PREFIX + "mixins.pos_embed.freqs_cos"] = angles.cos
    return rows


def sat_names(our_name: str) -> tuple[str, ...]:
    """The names, prefix included, under which SAT files and YAML rules know one of our tensors.

    A base weight of attention has two: a LoRA model stores it under `original.`.

    Raises:
        WeightsError: not a name of our network.
    """
    found = counterparts(our_name, _BACKWARD)
    if not found:
        raise WeightsError(
            f"{our_name} is not a tensor of the network",
            where="our names",
            fix="use a name of DiffusionTransformer.named_parameters()",
        )
    names = [PREFIX + name for name in found]
    for name in found:
        base = _LORA_BASE.fullmatch(name)
        if base is not None:
            names.append(f"{PREFIX}{base[1]}.original.{base[2]}")
    return tuple(names)


def _with_patch_layout(trailing: tuple[int, ...] | None) -> tuple[Rule, ...]:
    return tuple(
        Reshape(rule.source, rule.target, rule.trailing, trailing)
        if isinstance(rule, Reshape)
        else rule
        for rule in DIT + LORA
    )


def _original(name: str, converted: Mapping[str, Tensor]) -> str:
    """The base weight of a layer with pairs moves below `original.`."""
    base = _LORA_BASE.fullmatch(name)
    if base is None or f"{base[1]}.matrix_A.0" not in converted:
        return name
    return f"{base[1]}.original.{base[2]}"
