"""Names and config of diffusers' CogVideoXTransformer3DModel.

Its two adaptive norms per block each hold six of our twelve parts of the modulation. The final
norm of diffusers uses eps 1e-5 where CogVideoX uses 1e-6: outputs differ by about 2e-5 there, and
nothing in the config can change it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from app.config.schema.model import DiTConfig, PatchSize, PositionConfig
from app.conversion.rules import Concat, Drop, Rename, Reshape, Rule, apply_rules, inverse
from app.errors import ConfigError, WeightsError

log = logging.getLogger(__name__)

CLASS_NAME = "CogVideoXTransformer3DModel"
# The version whose names and keys these are; written into config.json.
DIFFUSERS_VERSION = "0.42.1"

_BLOCK = "transformer_blocks.{i}."
_ATTENTION = "blocks.{i}.attention."

# Read from diffusers; the way back is `inverse`.
DIT: tuple[Rule, ...] = (
    Rename("time_embedding.linear_1.{p}", "time_embed.0.{p}"),
    Rename("time_embedding.linear_2.{p}", "time_embed.2.{p}"),
    Rename("ofs_embedding.linear_1.{p}", "ofs_embed.0.{p}", required=False),
    Rename("ofs_embedding.linear_2.{p}", "ofs_embed.2.{p}", required=False),
    Reshape("patch_embed.proj.weight", "patch.video.weight"),
    Rename("patch_embed.proj.bias", "patch.video.bias"),
    Rename("patch_embed.text_proj.{p}", "patch.text.{p}"),
    Rename("patch_embed.pos_embedding", "position.table", required=False),
    Rename(_BLOCK + "norm1.norm.{p}", "blocks.{i}.norm_attention.{p}"),
    Rename(_BLOCK + "norm2.norm.{p}", "blocks.{i}.norm_mlp.{p}"),
    Concat(
        (_BLOCK + "norm1.linear.{p}", _BLOCK + "norm2.linear.{p}"),
        "blocks.{i}.modulation.{p}",
        parts=((0, 1, 2, 6, 7, 8), (3, 4, 5, 9, 10, 11)),
    ),
    Rename(_BLOCK + "attn1.to_q.{p}", _ATTENTION + "q.{p}"),
    Rename(_BLOCK + "attn1.to_k.{p}", _ATTENTION + "k.{p}"),
    Rename(_BLOCK + "attn1.to_v.{p}", _ATTENTION + "v.{p}"),
    Rename(_BLOCK + "attn1.to_out.0.{p}", _ATTENTION + "out.{p}"),
    Rename(_BLOCK + "attn1.norm_q.{p}", _ATTENTION + "norm_q.{p}"),
    Rename(_BLOCK + "attn1.norm_k.{p}", _ATTENTION + "norm_k.{p}"),
    Rename(_BLOCK + "ff.net.0.proj.{p}", "blocks.{i}.mlp.up.{p}"),
    Rename(_BLOCK + "ff.net.2.{p}", "blocks.{i}.mlp.down.{p}"),
    Rename("norm_final.{p}", "norm.{p}"),
    Rename("norm_out.norm.{p}", "final.norm.{p}"),
    Rename("norm_out.linear.{p}", "final.modulation.{p}"),
    Rename("proj_out.{p}", "final.linear.{p}"),
)


def from_diffusers(
    names: Iterable[str], read: Callable[[str], Tensor], where: str
) -> Iterator[tuple[str, Tensor]]:
    """Our names and tensors of a diffusers transformer.

    Raises:
        WeightsError: the file is not such a transformer.
    """
    yield from apply_rules(names, read, DIT, where)


def to_diffusers(tensors: Mapping[str, Tensor], config: DiTConfig) -> dict[str, Tensor]:
    """The diffusers state dict of all tensors of a network by our names (LoRA merged before).

    Raises:
        ConfigError: diffusers has no such network.
        WeightsError: tensors are missing, or LoRA pairs are there.
    """
    check_expressible(config)
    rules = inverse(tuple(_laid_out(rule, config) for rule in DIT))
    if not config.position.learnable:
        # Computed on both sides; current diffusers refuses it in a file.
        rules = (Drop("position.table", why="computed from the config"), *rules)
    return dict(apply_rules(tensors, tensors.__getitem__, rules, "the network's tensors"))


def _laid_out(rule: Rule, config: DiTConfig) -> Rule:
    """1.0 networks have a Conv2d patch weight in diffusers, those with frames in a patch do not."""
    if not isinstance(rule, Reshape) or config.patch.frames != 1:
        return rule
    conv = (config.patch.rows, config.patch.columns)
    return Reshape(rule.source, rule.target, rule.trailing, source_trailing=conv)


def transformer_config(config: DiTConfig) -> dict[str, Any]:
    """The content of config.json.

    Raises:
        ConfigError: diffusers has no such network.
    """
    check_expressible(config)
    patch, position = config.patch, config.position
    one_frame = patch.frames == 1
    sincos = position.kind == "sincos3d"
    return {
        "_class_name": CLASS_NAME,
        "_diffusers_version": DIFFUSERS_VERSION,
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_head_dim": config.head_dim,
        "dropout": 0.0,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": config.in_channels,
        "max_text_seq_length": position.text_length,
        "norm_elementwise_affine": True,
        "norm_eps": 1e-5,
        "num_attention_heads": config.num_attention_heads,
        "num_layers": config.num_layers,
        "ofs_embed_dim": config.ofs_embed_dim,
        "out_channels": config.out_channels,
        "patch_bias": one_frame,
        "patch_size": patch.rows,
        "patch_size_t": None if one_frame else patch.frames,
        "sample_frames": config.num_frames,
        "sample_height": config.latent_height,
        "sample_width": config.latent_width,
        # Only the fixed table reads the scale; 1.875 is what diffusers' own configs say elsewhere.
        "spatial_interpolation_scale": position.height_interpolation if sincos else 1.875,
        "temporal_compression_ratio": config.time_compressed_rate,
        "temporal_interpolation_scale": position.time_interpolation if sincos else 1.0,
        "text_embed_dim": config.text_hidden_size,
        "time_embed_dim": config.time_embed_dim,
        "timestep_activation_fn": "silu",
        "use_learned_positional_embeddings": position.learnable,
        "use_rotary_positional_embeddings": position.kind == "rope3d",
    }


# What the released networks have, and we build nothing else: refused with another value.
_FIXED: dict[str, Any] = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "norm_elementwise_affine": True,
    "norm_eps": 1e-5,
    "timestep_activation_fn": "silu",
}
# Defaults of the class, for a config.json that leaves them out.
_DEFAULTS: dict[str, Any] = {
    "attention_head_dim": 64,
    "in_channels": 16,
    "max_text_seq_length": 226,
    "num_attention_heads": 30,
    "num_layers": 30,
    "ofs_embed_dim": None,
    "out_channels": 16,
    "patch_size": 2,
    "patch_size_t": None,
    "sample_frames": 49,
    "sample_height": 60,
    "sample_width": 90,
    "spatial_interpolation_scale": 1.875,
    "temporal_compression_ratio": 4,
    "temporal_interpolation_scale": 1.0,
    "text_embed_dim": 4096,
    "time_embed_dim": 512,
    "use_learned_positional_embeddings": False,
    "use_rotary_positional_embeddings": False,
}
# Keys that say nothing that the tensors do not say, or nothing about a frozen network.
_UNREAD = ("dropout", "patch_bias")


def check_config(
    content: Mapping[str, Any],
    class_name: str,
    fixed: Mapping[str, Any],
    where: str,
    *,
    known: Iterable[str],
) -> None:
    """Raise WeightsError unless a config.json is of this class, in a variant that was released.

    Keys that the class does not have are named in a warning: diffusers ignores them as well.

    Args:
        content: of the file.
        class_name: of diffusers.
        fixed: key -> the one value that every released one has, which is also its default.
        where: the file.
        known: the other keys of the class.
    """
    if content.get("_class_name", class_name) != class_name:
        raise WeightsError(
            f"the config is of {content['_class_name']}, not of {class_name}",
            where=where,
            fix="name a CogVideoX folder of that kind, or the pipeline folder around it",
        )
    for key, value in fixed.items():
        if content.get(key, value) != value:
            raise WeightsError(
                f"{key} is {content[key]!r}; every released {class_name} has {value!r}",
                where=where,
                fix="this variant cannot be converted",
            )
    unknown = sorted({key for key in content if not key.startswith("_")} - {*fixed, *known})
    if unknown:
        log.warning("%s: %s does not have %s, ignored", where, class_name, ", ".join(unknown))


def network_of_config(content: Mapping[str, Any], where: str) -> DiTConfig:
    """The network that a config.json of the transformer describes; undoes `transformer_config`.

    Raises:
        WeightsError: it is of another class, or of a variant that was never released.
    """
    check_config(content, CLASS_NAME, _FIXED, where, known=(*_DEFAULTS, *_UNREAD))
    try:
        return _network(_DEFAULTS | {key: content[key] for key in _DEFAULTS if key in content})
    except (TypeError, ValueError) as cause:
        raise WeightsError(
            f"the config does not parse ({cause!r})", where=where, fix="fetch it again"
        ) from cause


def _network(given: Mapping[str, Any]) -> DiTConfig:
    heads, hidden = int(given["num_attention_heads"]), int(given["attention_head_dim"])
    hidden *= heads
    rotary = bool(given["use_rotary_positional_embeddings"])
    spatial = 1.0 if rotary else float(given["spatial_interpolation_scale"])
    side, ofs = int(given["patch_size"]), given["ofs_embed_dim"]
    return DiTConfig(
        num_layers=int(given["num_layers"]),
        hidden_size=hidden,
        num_attention_heads=heads,
        in_channels=int(given["in_channels"]),
        out_channels=int(given["out_channels"]),
        patch=PatchSize(frames=int(given["patch_size_t"] or 1), rows=side, columns=side),
        position=PositionConfig(
            kind="rope3d" if rotary else "sincos3d",
            text_length=int(given["max_text_seq_length"]),
            learnable=bool(given["use_learned_positional_embeddings"]),
            height_interpolation=spatial,
            width_interpolation=spatial,
            time_interpolation=1.0 if rotary else float(given["temporal_interpolation_scale"]),
        ),
        num_frames=int(given["sample_frames"]),
        time_compressed_rate=int(given["temporal_compression_ratio"]),
        latent_height=int(given["sample_height"]),
        latent_width=int(given["sample_width"]),
        time_embed_dim=int(given["time_embed_dim"]),
        text_hidden_size=int(given["text_embed_dim"]),
        inner_hidden_size=4 * hidden,
        ofs_embed_dim=None if ofs is None else int(ofs),
    )


def check_expressible(config: DiTConfig) -> None:
    """Refuse a network that diffusers' class cannot be configured to.

    Raises:
        ConfigError: see above.
    """
    patch, position = config.patch, config.position
    reasons = {
        "use_SwiGLU": config.swiglu,
        "use_RMSNorm": config.rms_norm,
        "qk_ln: false": not config.qk_norm,
        "elementwise_affine: false": not config.elementwise_affine,
        "an inner_hidden_size that is not 4 * hidden_size": (
            config.inner_hidden_size != 4 * config.hidden_size
        ),
        "a patch that is not square": patch.rows != patch.columns,
        "a 2D position table": position.kind == "sincos2d",
        "different height and width interpolation": (
            position.kind == "sincos3d"
            and position.height_interpolation != position.width_interpolation
        ),
    }
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        raise ConfigError(
            f"diffusers has no CogVideoX transformer with {found[0]}",
            where="network_config.params",
            fix="export as safetensors or in the SAT layout instead",
        )
