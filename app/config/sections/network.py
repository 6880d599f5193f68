"""`model.network_config`: the diffusion transformer and its modules."""

from __future__ import annotations

from typing import Any

from app.config import upstream
from app.config.kinds import boolean, choice, exactly, integer, optional, real, sequence
from app.config.reader import (
    Context,
    Field,
    Reader,
    constant,
    open_below,
    open_part,
    rows,
)
from app.config.schema.model import DiTConfig, LoraConfig, PositionConfig
from app.config.target import Component

NETWORK = rows(
    DiTConfig,
    Field("num_layers", integer(1)),
    Field("hidden_size", integer(1)),
    Field("num_attention_heads", integer(1)),
    Field("in_channels", integer(1)),
    Field("out_channels", integer(1)),
    Field("patch_size", upstream.patch_size_kind(), name="patch"),
    Field("num_frames", integer(1)),
    Field("time_compressed_rate", integer(1)),
    Field("latent_height", integer(1)),
    Field("latent_width", integer(1)),
    Field("time_embed_dim", optional(integer(1)), None),
    Field("ofs_embed_dim", optional(integer(1))),
    Field("elementwise_affine", boolean()),
    Field("use_SwiGLU", boolean(), name="swiglu"),
    Field("use_RMSNorm", boolean(), name="rms_norm"),
    Field("input_time", choice("adaln"), "adaln", ""),
    Field("num_classes", optional(exactly(None, "no class conditioning")), None, ""),
)
TRANSFORMER = rows(
    DiTConfig,
    Field("checkpoint_activations", boolean()),
    Field("checkpoint_num_layers", integer(1)),
    Field("checkpoint_skip_layers", integer(0)),
    Field("model_parallel_size", integer(1)),
    Field("inner_hidden_size", optional(integer(1)), None),
    Field("layernorm_order", choice("pre"), "pre", ""),
    constant("is_decoder", False, "there is no cross attention"),
    constant("use_bias", True, "the released weights have biases"),
    constant("use_final_layernorm", True, "the released weights have one"),
    constant("layernorm_epsilon", 1e-5, "the released weights need it"),
    Field("hidden_dropout_prob", real(0, 0), 0.0, ""),
    Field("attention_dropout_prob", real(0, 0), 0.0, ""),
    Field("output_dropout_prob", real(0, 0), 0.0, ""),
)
PATCH = rows(DiTConfig, Field("text_hidden_size", integer(1)))
ADALN = rows(DiTConfig, Field("qk_ln", boolean(), name="qk_norm"))
INTERPOLATION = rows(
    PositionConfig, *(Field(key, real(above=0)) for key in upstream.INTERPOLATIONS)
)
TABLE = rows(PositionConfig, Field("text_length", integer(0)))
ROTARY = (
    Field("text_length", integer(0), 0),
    *rows(PositionConfig, Field("learnable_pos_embed", boolean(), name="learnable")),
    Field("hidden_size_head", optional(integer(1)), None, "head"),
    constant("theta", 10000, "the released weights need it"),
    constant("rot_v", False, "values are not rotated"),
)
LORA = rows(
    LoraConfig,
    Field("r", integer(1), name="rank"),
    Field("lora_alpha", real(above=0), name="alpha"),
    Field("lora_dropout", real(0, 1), name="dropout"),
    Field("layer_range", optional(sequence(integer(0)))),
    constant("qlora", False, "quantised LoRA is not supported"),
)


def read_dit(node: object, where: str, context: Context) -> Component[DiTConfig] | None:
    """The network; None, with the mistakes recorded, if it cannot be read."""
    problems = context.problems
    before = problems.count
    part = open_part(node, where, "network", context)
    if part is None:
        return None
    part.node.close()
    params = part.params
    params.dead(upstream.DEAD_NETWORK)
    values = params.fields(NETWORK)
    values |= _transformer_args(params)
    values |= _modules(params, values, context)
    params.close()
    if problems.count > before:
        return None
    if values["time_embed_dim"] is None:
        values["time_embed_dim"] = values["hidden_size"]
    if values["inner_hidden_size"] is None:
        values["inner_hidden_size"] = 4 * values["hidden_size"]
    config = problems.build(DiTConfig, values)
    return part.component(config) if config else None


def _transformer_args(params: Reader) -> dict[str, Any]:
    reader = params.child("transformer_args")
    if reader is None:
        reader = Reader({}, params.path("transformer_args"), params.problems)
    reader.dead(upstream.DEAD_TRANSFORMER)
    values = reader.fields(TRANSFORMER)
    reader.close()
    return values


def _modules(params: Reader, values: dict[str, Any], context: Context) -> dict[str, Any]:
    modules = params.child("modules", required=True)
    if modules is None:
        return {}
    found: dict[str, Any] = {
        "position": _position(params, modules, values, context),
    }
    patch = open_below(modules, "patch_embed_config", "patch", context)
    if patch is not None:
        found |= patch.params.fields(PATCH)
        patch.params.close()
    adaln = open_below(modules, "adaln_layer_config", "adaln", context)
    if adaln is not None:
        found |= adaln.params.fields(ADALN)
        adaln.params.close()
    final = open_below(modules, "final_layer_config", "final layer", context)
    if final is not None:
        final.params.close()
    if modules.raw("lora_config") is not None:
        found["lora"] = _lora(modules, context)
    modules.close()
    return found


def _position(
    params: Reader, modules: Reader, values: dict[str, Any], context: Context
) -> PositionConfig | None:
    part = open_below(modules, "pos_embed_config", "position", context)
    factors = upstream.interpolation_nodes(params, part.params if part else None)
    if part is None:
        return None
    reader = part.params
    found = reader.fields(ROTARY if part.target.choice == "rope3d" else TABLE)
    reader.close()
    _check_head(found.pop("head", None), reader, values)
    scale = Reader(factors, params.where, context.problems)
    found |= scale.fields(INTERPOLATION)
    if found.get("text_length") is None:
        return None
    return context.problems.build(PositionConfig, {"kind": part.target.choice, **found})


def _check_head(head: int | None, reader: Reader, values: dict[str, Any]) -> None:
    hidden, heads = values.get("hidden_size"), values.get("num_attention_heads")
    if head is None or not hidden or not heads or hidden % heads or head * heads == hidden:
        return
    reader.problems.add(
        f"hidden_size_head is {head}, but hidden_size / num_attention_heads is {hidden // heads}",
        where=reader.path("hidden_size_head"),
        fix=f"use {hidden // heads}, or leave it out",
    )


def _lora(modules: Reader, context: Context) -> LoraConfig | None:
    part = open_below(modules, "lora_config", "lora", context)
    if part is None:
        return None
    part.params.dead(upstream.DEAD_LORA)
    values = part.params.fields(LORA)
    part.params.close()
    if values["rank"] is None:
        return None
    return context.problems.build(LoraConfig, values)
