"""Whether weights fit a network, by names and shapes; if not, what differs and the likely cause.

Axes: h hidden width, C channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from app.errors import WeightsError

Shapes = Mapping[str, tuple[int, ...]]
LISTED = 3  # of each kind


@dataclass(frozen=True)
class Misfit:
    """Names on which a network and a file disagree."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: tuple[str, ...]


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def num_layers(names: Iterable[str]) -> int:
    """1 + the highest layer among our names of tensors; 0 without any."""
    layers = [int(name.split(".")[1]) for name in names if name.startswith("blocks.")]
    return max(layers, default=-1) + 1


def check_fit(
    network: Shapes, file: Shapes, where: str, *, what: str = "the network", fix: str | None = None
) -> None:
    """Raise WeightsError unless a file has the tensors of a network, no others, in its shapes.

    The message has counts, the first names of each kind of disagreement and the likely cause.

    Args:
        network: wanted, by our names.
        file: found.
        where: the file.
        what: that the weights should fit, for the message.
        fix: None: what the disagreement suggests.
    """
    misfit = Misfit(
        missing=tuple(name for name in network if name not in file),
        unexpected=tuple(name for name in file if name not in network),
        misshaped=tuple(n for n, shape in network.items() if n in file and file[n] != shape),
    )
    shapes = [f"{n} is {file[n]}, expected {network[n]}" for n in misfit.misshaped[:LISTED]]
    parts = [
        _part("missing", misfit.missing),
        _part("unexpected", misfit.unexpected),
        f"{len(misfit.misshaped)} misshaped ({_listed(shapes, len(misfit.misshaped))})"
        if misfit.misshaped
        else "",
    ]
    if any(parts):
        raise WeightsError(
            f"the weights do not fit {what}: {'; '.join(part for part in parts if part)}",
            where=where,
            fix=fix or _likely_cause(misfit, network, file),
        )


def _part(kind: str, names: tuple[str, ...]) -> str:
    return f"{len(names)} {kind} ({_listed(names[:LISTED], len(names))})" if names else ""


def _listed(names: Iterable[str], count: int) -> str:
    return ", ".join([*names, *(["..."] if count > LISTED else [])])


def _likely_cause(misfit: Misfit, network: Shapes, file: Shapes) -> str:
    """What a person should check first."""
    for cause in (_lora, _width, _depth, _channels, _ofs, _table):
        found = cause(misfit, network, file)
        if found is not None:
            return found
    return "check that the file and network_config belong to the same model"


def _lora(misfit: Misfit, network: Shapes, file: Shapes) -> str | None:
    pairs_in_file = any(".lora_" in name for name in file)
    pairs_in_network = any(".lora_" in name for name in network)
    if pairs_in_file and not pairs_in_network:
        return (
            "the file holds LoRA pairs and the network has none: add lora_config to the model "
            "file (a *_lora.yaml), or merge the pairs first"
        )
    only_pairs = [all(".lora_" in name for name in shapes) for shapes in (file, network)]
    if only_pairs == [True, False]:
        return (
            "the file holds LoRA pairs alone: load the base weights first (--load), and give this "
            "file as --lora-from (cogvx train) or --lora (cogvx sample)"
        )
    if any(".lora_" in name for name in (*misfit.missing, *misfit.unexpected, *misfit.misshaped)):
        return "the LoRA pairs are of another rank or other layers: compare r and layer_range"
    return None


def _width(misfit: Misfit, network: Shapes, file: Shapes) -> str | None:
    ours, theirs = _hidden(network), _hidden(file)
    if ours == theirs or None in (ours, theirs):
        return None
    return (
        f"the file is of a model of width {_named(theirs)}, the config of width {_named(ours)}: "
        "use the model file that belongs to the weights"
    )


def _named(hidden: int | None) -> str:
    released = {1920: " (2B)", 3072: " (5B and 1.5)"}
    return f"{hidden}{released.get(hidden or 0, '')}"


def _hidden(shapes: Shapes) -> int | None:
    bias = shapes.get("patch.video.bias")
    return bias[0] if bias else None


def _depth(misfit: Misfit, network: Shapes, file: Shapes) -> str | None:
    ours, theirs = num_layers(network), num_layers(file)
    if ours == theirs or 0 in (ours, theirs):
        return None
    return f"the file has {theirs} layers, the config num_layers {ours}: use the model file of it"


def _channels(misfit: Misfit, network: Shapes, file: Shapes) -> str | None:
    name = "patch.video.weight"
    if name not in misfit.misshaped or len(file[name]) != 2:
        return None
    ours, theirs = network[name][1], file[name][1]
    final_ours, final_theirs = network.get("final.linear.bias"), file.get("final.linear.bias")
    if final_ours != final_theirs:
        return (
            f"patches of {theirs} numbers in the file, of {ours} in the config: these are weights "
            "of another generation (1.0 has patch_size 2, 1.5 has [2, 2, 2])"
        )
    if ours == 2 * theirs:
        return (
            "the file has half of in_channels: these are text-to-video weights for an "
            "image-to-video config (noised_image_input)"
        )
    if theirs == 2 * ours:
        return (
            "the file has twice in_channels: these are image-to-video weights for a "
            "text-to-video config"
        )
    return f"the file has patches of {theirs} numbers, the config of {ours}: compare in_channels"


def _ofs(misfit: Misfit, network: Shapes, file: Shapes) -> str | None:
    if any(name.startswith("ofs_embed.") for name in misfit.unexpected):
        return "the file has an ofs embedding: it is of 1.5 image-to-video; set ofs_embed_dim"
    if any(name.startswith("ofs_embed.") for name in misfit.missing):
        return "the file has no ofs embedding: only 1.5 image-to-video has one; unset ofs_embed_dim"
    return None


def _table(misfit: Misfit, network: Shapes, file: Shapes) -> str | None:
    name = "position.table"
    if name in misfit.misshaped:
        return (
            "the learned position table is of another size: num_frames, latent_height, "
            "latent_width and text_length must be those of the weights"
        )
    if name in misfit.unexpected:
        return "the file has a learned position table (5B image-to-video), the config has none"
    if name in misfit.missing:
        return "the config has a learned position table (learnable_pos_embed), the file has none"
    return None
