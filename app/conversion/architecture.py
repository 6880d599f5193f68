"""Which network do weights belong to: from our own notes in the file, or from the shapes alone.

Shapes give width, depth and channels, not the sizes that the position table was made for. Those
are known of the released networks: a file with the shapes of one is taken for it.

Axes: h hidden width, C channels, (o, p, q) patch frames, rows, columns, r rank.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, NamedTuple

from app.config.schema.model import DiTConfig, LoraConfig, PatchSize, PositionConfig
from app.conversion.misfit import Shapes, num_layers
from app.errors import CogvxError, WeightsError
from app.models.dit.position import has_table
from app.models.lora.linear import pairs_among

NETWORK_KEY = "cogvx.network"  # header entry of our own files: the network's config as JSON
SAT_LORA_ALPHA = 1.0  # what upstream takes where lora_alpha is not given


class Features(NamedTuple):
    """What can be read from the shapes of a network."""

    hidden_size: int
    num_layers: int
    patch: int  # numbers in a patch: C_in * o * p * q
    out: int  # rows of the last layer: C_out * o * p * q
    ofs: bool
    table: int  # rows of the stored position table, 0 without one


def released_networks() -> dict[str, DiTConfig]:
    """The five released networks by name, as the stock model files describe them."""
    wide = {"num_layers": 42, "hidden_size": 3072, "num_attention_heads": 48}
    small = {"num_layers": 30, "hidden_size": 1920, "num_attention_heads": 30}
    image = {"in_channels": 32}
    table = PositionConfig(
        kind="sincos3d", text_length=226, height_interpolation=1.875, width_interpolation=1.875
    )
    learned = PositionConfig(kind="rope3d", text_length=226, learnable=True)
    return {
        "CogVideoX-2B": _network_1_0(position=table, **small),
        "CogVideoX-5B": _network_1_0(**wide),
        "CogVideoX-5B-I2V": _network_1_0(position=learned, **wide, **image),
        "CogVideoX1.5-5B": _network_1_5(**wide),
        "CogVideoX1.5-5B-I2V": _network_1_5(ofs_embed_dim=512, **wide, **image),
    }


def _network_1_0(**given: Any) -> DiTConfig:
    common: dict[str, Any] = {
        "in_channels": 16,
        "out_channels": 16,
        "patch": PatchSize(frames=1, rows=2, columns=2),
        "position": PositionConfig(kind="rope3d", text_length=226),
        "num_frames": 49,
        "time_compressed_rate": 4,
        "latent_height": 60,
        "latent_width": 90,
        "time_embed_dim": 512,
        "text_hidden_size": 4096,
        "inner_hidden_size": 4 * given["hidden_size"],
    }
    return DiTConfig(**(common | given))


def _network_1_5(**given: Any) -> DiTConfig:
    sizes: dict[str, Any] = {"num_frames": 81, "latent_height": 300, "latent_width": 300}
    position = PositionConfig(kind="rope3d", text_length=224)
    patch = PatchSize(frames=2, rows=2, columns=2)
    return _network_1_0(patch=patch, position=position, **sizes, **given)


def released_network(shapes: Shapes) -> tuple[str, DiTConfig] | None:
    """Name and config of the released network that tensors by our names belong to.

    LoRA pairs among them are ignored (see `lora_of`). None: no released network has these sizes.
    """
    found = _features(shapes)
    for name, config in released_networks().items():
        expected = _expected(config)
        # A fixed table may be left out of a file: it can be computed.
        tables = {expected.table} if config.position.learnable else {expected.table, 0}
        if found is None or found._replace(table=0) != expected._replace(table=0):
            continue
        # The table distinguishes no two of them, but one of a wrong size must not pass as right.
        if found.table in tables:
            return name, config
    return None


def _features(shapes: Shapes) -> Features | None:
    patch, out = shapes.get("patch.video.weight"), shapes.get("final.linear.weight")
    if patch is None or out is None:
        return None
    return Features(
        hidden_size=patch[0],
        num_layers=num_layers(shapes),
        patch=patch[1] if len(patch) == 2 else 0,
        out=out[0],
        ofs="ofs_embed.0.weight" in shapes,
        table=shapes.get("position.table", (0, 0))[1],
    )


def _expected(config: DiTConfig) -> Features:
    frames, rows, columns = config.grid
    size = config.patch.frames * config.patch.rows * config.patch.columns
    return Features(
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        patch=config.in_channels * size,
        out=config.out_channels * size,
        ofs=config.ofs_embed_dim is not None,
        table=config.position.text_length + frames * rows * columns
        if has_table(config.position)
        else 0,
    )


def lora_of(shapes: Shapes, layers: int) -> LoraConfig | None:
    """Rank and layers of the LoRA pairs among tensors by our names; None where there are none.

    Alpha, which no shape gives, is upstream's default.

    Args:
        shapes: by our names.
        layers: of the whole network.
    """
    wrapped = sorted({int(name.split(".")[1]) for name in pairs_among(shapes)})
    if not wrapped:
        return None
    rank = next(shape[0] for name, shape in shapes.items() if name.endswith(".lora_a"))
    chosen = None if wrapped == list(range(layers)) else tuple(wrapped)
    return LoraConfig(rank=rank, alpha=SAT_LORA_ALPHA, layer_range=chosen)


def network_of_metadata(metadata: Mapping[str, str], where: str) -> DiTConfig | None:
    """The config in the header of one of our own files; None where it has none.

    Raises:
        WeightsError: the entry does not parse, or names what this version does not know.
    """
    text = metadata.get(NETWORK_KEY)
    if text is None:
        return None
    try:
        content = json.loads(text)
        lora = content.pop("lora", None)
        config = DiTConfig(
            **{
                **_known(DiTConfig, content),
                "patch": PatchSize(**_known(PatchSize, content["patch"])),
                "position": PositionConfig(**_known(PositionConfig, content["position"])),
            }
        )
        if lora is not None:
            layers = lora.get("layer_range")
            lora["layer_range"] = None if layers is None else tuple(layers)
            config = replace(config, lora=LoraConfig(**_known(LoraConfig, lora)))
    except (ValueError, KeyError, TypeError, AttributeError, CogvxError) as cause:
        raise WeightsError(
            f"{NETWORK_KEY} in the header does not parse ({cause!r})",
            where=where,
            fix="export the file again, or name the model's files with --base",
        ) from cause
    return config


def _known(kind: type, content: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(kind)}
    unknown = set(content) - names
    if unknown:
        raise ValueError(f"unknown entry {min(unknown)}: written by another version")
    return dict(content)
