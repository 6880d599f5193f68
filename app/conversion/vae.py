"""Tensor names of the 3D VAE: 3d-vae.pt (which are ours) and diffusers' AutoencoderKLCogVideoX.

No tensor is reshaped. diffusers counts the decoder's levels from the smallest image up, SAT from
the largest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from torch import Tensor

from app.conversion.rules import Drop, Rename, Rule, convert, inverse

SAT_PREFIX = "first_stage_model."  # inside a training checkpoint
_UP_BLOCK = re.compile(r"decoder\.up_blocks\.(\d+)\..*")
_UP = re.compile(r"decoder\.up\.(\d+)\..*")


def vae_rules(levels: int) -> tuple[Rule, ...]:
    """3d-vae.pt -> diffusers, for a decoder with that many levels."""
    rules: list[Rule] = [Drop("loss.{rest}", why="the discriminator of the VAE's own training")]
    for half in ("encoder", "decoder"):
        rules += [
            Rename(f"{half}.conv_in.{{rest}}", f"{half}.conv_in.{{rest}}"),
            Rename(f"{half}.conv_out.{{rest}}", f"{half}.conv_out.{{rest}}"),
            Rename(f"{half}.norm_out.{{rest}}", f"{half}.norm_out.{{rest}}"),
            Rename(f"{half}.mid.block_1.{{rest}}", f"{half}.mid_block.resnets.0.{{rest}}"),
            Rename(f"{half}.mid.block_2.{{rest}}", f"{half}.mid_block.resnets.1.{{rest}}"),
        ]
    rules += _level("encoder.down.{i}", "encoder.down_blocks.{i}", "downsample")
    for level in range(levels):
        rules += _level(
            f"decoder.up.{level}", f"decoder.up_blocks.{levels - 1 - level}", "upsample"
        )
    return tuple(rules)


def _level(ours: str, theirs: str, resample: str) -> list[Rule]:
    """One resolution; the more special name first."""
    return [
        Rename(
            ours + ".block.{j}.nin_shortcut.{p}",
            theirs + ".resnets.{j}.conv_shortcut.{p}",
            required=False,
        ),
        Rename(ours + ".block.{j}.{rest}", theirs + ".resnets.{j}.{rest}"),
        Rename(f"{ours}.{resample}.{{rest}}", f"{theirs}.{resample}rs.0.{{rest}}", required=False),
    ]


def vae_to_diffusers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The diffusers state dict of a VAE by our names.

    Raises:
        WeightsError: a tensor is unknown, or a whole part is missing.
    """
    rules = vae_rules(_levels(tensors, _UP))
    return dict(convert(tensors, tensors.__getitem__, rules, "the VAE's tensors"))


def vae_from_diffusers(
    names: Iterable[str], read: Callable[[str], Tensor], where: str
) -> Iterator[tuple[str, Tensor]]:
    """Our names and tensors of a diffusers VAE.

    Raises:
        WeightsError: a tensor is unknown, or a whole part is missing.
    """
    names = list(names)
    yield from convert(names, read, inverse(vae_rules(_levels(names, _UP_BLOCK))), where)


def vae_names(names: Iterable[str], ignore_keys: tuple[str, ...] = ()) -> dict[str, str]:
    """Names without the prefix of a training checkpoint, each with the name in the file.

    Args:
        names: in the file; where some have the prefix, the others are not the VAE's.
        ignore_keys: prefixes of names that are left out (the discriminator: `loss`).
    """
    names = list(names)
    inside = [name for name in names if name.startswith(SAT_PREFIX)]
    stored = {name.removeprefix(SAT_PREFIX): name for name in inside or names}
    return {
        name: full
        for name, full in stored.items()
        if not (ignore_keys and name.startswith(ignore_keys))
    }


def _levels(names: Iterable[str], pattern: re.Pattern[str]) -> int:
    found = (pattern.fullmatch(name) for name in names)
    return 1 + max((int(match[1]) for match in found if match), default=0)
