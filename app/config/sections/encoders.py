"""The frozen encoders of `model:`: the VAE (first stage) and the text conditioner."""

from __future__ import annotations

from typing import Any

from app.config import upstream
from app.config.kinds import boolean, choice, integer, optional, real, sequence, text
from app.config.problems import Problems
from app.config.reader import Context, Field, Reader, constant, open_below, open_part, rows
from app.config.schema.data import DataConfig, SFTDataConfig, ShardDataConfig
from app.config.schema.encoders import (
    ConditionerConfig,
    T5Config,
    VAEConfig,
    VAEMemoryConfig,
    VAEPartConfig,
)
from app.config.schema.model import ModelConfig
from app.config.target import Component

FIRST_STAGE = rows(
    VAEConfig,
    Field("cp_size", integer(1)),
    Field("ckpt_path", optional(text())),
    Field("ignore_keys", sequence(text())),
)
MEMORY = rows(
    VAEMemoryConfig,
    Field("encode_frames", optional(integer(1))),
    Field("parking", choice("device", "host", "disk")),
    Field("tile_size", optional(sequence(integer(1), length=2))),
    Field("tile_overlap", integer(0)),
)
REGULARIZER = rows(VAEConfig, Field("sample", boolean(), name="sample_posterior"))
CODER = rows(
    VAEPartConfig,
    Field("ch", integer(1)),
    Field("ch_mult", sequence(integer(1))),
    Field("num_res_blocks", integer(1)),
    Field("z_channels", integer(1)),
    Field("in_channels", integer(1)),
    Field("out_ch", integer(1)),
    Field("temporal_compress_times", integer(1)),
    Field("zq_ch", optional(integer(1)), None, "zq"),
    constant("double_z", True, "the encoder gives mean and log variance"),
    constant("add_conv", False, "the released weights have none"),
    constant("give_pre_end", False, "the whole decoder runs"),
    constant("resamp_with_conv", True, "the released weights have it"),
)
EMBEDDER = rows(
    ConditionerConfig,
    constant("is_trainable", False, "training the text encoder is not supported"),
    Field("ucg_rate", real(0, 1)),
)
T5 = rows(T5Config, Field("model_dir", text()), Field("max_length", integer(1)))
GROUPS = 32  # of every group norm in this VAE


def read_first_stage(node: object, where: str, context: Context) -> Component[VAEConfig] | None:
    """`first_stage_config`."""
    problems = context.problems
    part = open_part(node, where, "first stage", context)
    if part is None:
        return None
    part.node.close()
    if part.registered:
        return part.component(dict(part.params.values))
    before = problems.count
    params = part.params
    params.dead(upstream.DEAD_FIRST_STAGE)
    values = params.fields(FIRST_STAGE)
    values["memory"] = VAEMemoryConfig(**params.fields(MEMORY))
    values |= _regularizer(params, context)
    values["encoder"] = _coder(params, "encoder_config", "vae encoder", context)
    values["decoder"] = _coder(params, "decoder_config", "vae decoder", context)
    params.close()
    if problems.count == before:
        _check_coders(values["encoder"], values["decoder"], params)
    if problems.count > before:
        return None
    config = problems.build(VAEConfig, values)
    return part.component(config) if config else None


def check_clip_shares(model: ModelConfig, data: DataConfig | None, problems: Problems) -> None:
    """Ranks that encode a clip together have a latent frame each."""
    vae, clips = model.first_stage.params, data.params if data is not None else None
    if not isinstance(vae, VAEConfig) or not isinstance(clips, SFTDataConfig | ShardDataConfig):
        return
    frames = clips.num_frames if isinstance(clips, ShardDataConfig) else clips.max_num_frames
    latents = (frames - 1) // vae.encoder.temporal_compress_times + 1
    if vae.cp_size > latents:
        problems.add(
            f"{vae.cp_size} ranks cannot share clips of {frames} frames, which have {latents} "
            "latent frames",
            where="model.first_stage_config.params.cp_size",
            fix=f"use 1 to {latents}, or longer clips",
        )


def _check_coders(encoder: VAEPartConfig, decoder: VAEPartConfig, params: Reader) -> None:
    """Sizes that the encoder, the decoder and their group norms need to agree on."""
    for name in ("z_channels", "ch_mult", "temporal_compress_times"):
        ours, theirs = getattr(encoder, name), getattr(decoder, name)
        if ours != theirs:
            params.problems.add(
                f"{name} is {ours} in the encoder and {theirs} in the decoder",
                where=params.path(f"decoder_config.params.{name}"),
                fix="make them equal",
            )
    for key, coder in (("encoder_config", encoder), ("decoder_config", decoder)):
        widths = [coder.ch * factor for factor in (1, *coder.ch_mult)]
        if any(width % GROUPS for width in widths):
            params.problems.add(
                f"the widths {widths} (ch times ch_mult) must be multiples of {GROUPS}",
                where=params.path(f"{key}.params.ch"),
                fix="change ch or ch_mult",
            )
    levels = encoder.temporal_compress_times.bit_length() - 1
    if 2**levels != encoder.temporal_compress_times or levels >= len(encoder.ch_mult):
        params.problems.add(
            f"temporal_compress_times is {encoder.temporal_compress_times}",
            where=params.path("encoder_config.params.temporal_compress_times"),
            fix=f"use a power of two below {2 ** len(encoder.ch_mult)}",
        )


def _regularizer(params: Reader, context: Context) -> dict[str, Any]:
    if not params.has("regularizer_config"):
        return {}
    part = open_below(params, "regularizer_config", "regularizer", context)
    if part is None:
        return {}
    found = part.params.fields(REGULARIZER)
    part.params.close()
    return found


def _coder(params: Reader, key: str, role: str, context: Context) -> VAEPartConfig | None:
    part = open_below(params, key, role, context)
    if part is None:
        return None
    reader = part.params
    reader.dead(upstream.DEAD_CODER)
    values = reader.fields(CODER)
    reader.close()
    zq = values.pop("zq")
    if zq is not None and zq != values["z_channels"]:
        context.problems.add(
            f"zq_ch is {zq}, but z_channels is {values['z_channels']}",
            where=reader.path("zq_ch"),
            fix="leave zq_ch out",
        )
    return context.problems.build(VAEPartConfig, values)


def read_conditioner(node: object, where: str, context: Context) -> ConditionerConfig | None:
    """`conditioner_config`: exactly one frozen text embedder."""
    part = open_part(node, where, "conditioner", context)
    if part is None:
        return None
    part.node.close()
    models = part.params.raw("emb_models")
    part.params.close()
    path = part.params.path("emb_models")
    if not isinstance(models, list | tuple) or len(models) != 1:
        context.problems.add(
            "'emb_models' must hold exactly one text embedder",
            where=path,
            fix="give one entry with target, params, input_key and ucg_rate",
        )
        return None
    return _embedder(models[0], f"{path}.0", context)


def _embedder(node: object, where: str, context: Context) -> ConditionerConfig | None:
    part = open_part(node, where, "text encoder", context)
    if part is None:
        return None
    before = context.problems.count
    part.node.dead(upstream.DEAD_EMBEDDER)
    values = part.node.fields(EMBEDDER)
    part.node.close()
    if part.registered:
        values["params"] = dict(part.params.values)
        part.params.values.setdefault("model_dir", "")  # it may have no files
        length = values["params"].get("length")  # another name for max_length
        if type(length) is int and length > 0:
            part.params.values.setdefault("max_length", length)
    else:
        part.params.dead(upstream.DEAD_EMBEDDER_PARAMS)
    found = part.params.fields(T5)
    if not part.registered:
        part.params.close()
    if found["model_dir"] is not None:
        values["text"] = context.problems.build(T5Config, found)
    if context.problems.count > before:
        return None
    values |= {"target": part.name, "implementation": part.target.implementation}
    return context.problems.build(ConditionerConfig, values)
