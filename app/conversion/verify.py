"""Compare what was written with what was read: every tensor, and one forward of both.

Axes: B batch, T frames, C channels, H rows, W columns, n text tokens, o output features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from app.config.schema.encoders import VAEConfig
from app.config.schema.model import DiTConfig, LoraConfig
from app.errors import WeightsError
from app.models.conditioning import Conditioning
from app.models.dit.position import has_table
from app.models.dit.transformer import DiffusionTransformer
from app.models.vae.autoencoder import VideoAutoencoder

TEXT_TOKENS = 4  # of a network that takes any number
PATCHES = 2  # rows and columns, unless a learned position table has fewer
# Largest root of mean squares of the difference, over that of the output, by the dtype in files.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a comparison found.

    Attributes:
        tensors: compared, all of them equal.
        compared: "bit for bit", or after which cast.
        max_difference: largest difference of any element to the source, which a cast makes.
        forward: what was computed with both.
        forward_max_difference: largest difference of any number of it.
    """

    tensors: int
    compared: str
    max_difference: float
    forward: str
    forward_max_difference: float

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def compare_tensors(
    source: Mapping[str, Tensor], written: Mapping[str, Tensor], where: str
) -> tuple[str, float]:
    """Compare by name. A tensor in another dtype than the source's is that of the source, cast.

    Returns:
        How they were compared, and the largest difference to the source.

    Raises:
        WeightsError: a name or a value differs.
    """
    if set(source) != set(written):
        name = min(set(source) ^ set(written))
        raise _differs(f"{name} is {'missing' if name in source else 'new'}", where)
    casts: set[str] = set()
    largest = 0.0
    for name, tensor in source.items():
        found = written[name]
        if found.dtype != tensor.dtype:
            casts.add(str(found.dtype).removeprefix("torch."))
            largest = max(largest, max_difference(tensor, found))
        if found.shape != tensor.shape or not _same_bits(tensor.to(found.dtype), found):
            raise _differs(f"{name} has other values", where)
    return f"after the cast to {', '.join(sorted(casts))}" if casts else "bit for bit", largest


def max_difference(left: Tensor, right: Tensor) -> float:
    """Largest difference of any element, in fp32 or wider."""
    return float((left.float() - right.float()).abs().max()) if left.numel() else 0.0


def check_forward(source: Tensor, written: Tensor, dtypes: set[torch.dtype], where: str) -> float:
    """The largest difference of two outputs.

    Raises:
        WeightsError: they differ by more than the dtypes explain, or only one is NaN.
    """
    # NaN on both sides is in the weights: `compare_tensors` has found these to be the same.
    same = source.isnan() & written.isnan()
    source, written = source.float().masked_fill(same, 0), written.float().masked_fill(same, 0)
    allowed = max(TOLERANCE[dtype] for dtype in dtypes)
    size = source.square().mean().sqrt()
    error = (source - written).square().mean().sqrt()
    if not error <= allowed * size:  # also where it is NaN
        raise _differs(f"the outputs differ by {float(error):g} of {float(size):g}", where)
    return max_difference(source, written)


def _differs(what: str, where: str) -> WeightsError:
    return WeightsError(
        f"what was written is not what was read: {what}",
        where=where,
        fix="do not use these files; check the disk, and report it as a bug if they fail again",
    )


def _same_bits(left: Tensor, right: Tensor) -> bool:
    """Also for NaN, which does not equal itself."""
    return torch.equal(left.contiguous().view(torch.uint8), right.contiguous().view(torch.uint8))


@torch.no_grad()
def network_output(tensors: Mapping[str, Tensor], config: DiTConfig) -> Tensor:
    """One forward with fixed inputs, in the dtype of the weights: (1, T, C, H, W)."""
    dtype = tensors["patch.video.weight"].dtype
    network = DiffusionTransformer(config, device="meta", dtype=dtype).eval()
    network.load_state_dict({n: t.to(dtype) for n, t in tensors.items()}, assign=True)
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    patch = config.patch
    most = config.grid[1:] if config.position.learnable else (PATCHES, PATCHES)
    rows, columns = (min(PATCHES, stored) for stored in most)
    T, H, W = patch.frames, rows * patch.rows, columns * patch.columns
    n = config.position.text_length if has_table(config.position) else TEXT_TOKENS
    image_channels = config.in_channels - config.out_channels
    conditioning = Conditioning(
        text=normal(1, n, config.text_hidden_size),
        image=normal(1, T, image_channels, H, W) if image_channels else None,
        ofs=torch.tensor([2.0]) if config.ofs_embed_dim else None,
    )
    output: Tensor = network(
        normal(1, T, config.out_channels, H, W), torch.tensor([500]), conditioning
    )
    return output


@torch.no_grad()
def pairs_output(pairs: Mapping[str, Tensor], lora: LoraConfig) -> Tensor:
    """What every pair adds to its layer for one fixed input, side by side: (all o,) fp32."""
    added = []
    for name in sorted(pairs):
        if name.endswith(".lora_a"):
            a, b = pairs[name].float(), pairs[name.removesuffix("a") + "b"].float()
            x = torch.randn(a.shape[1], generator=torch.Generator().manual_seed(0))
            added.append((b @ (a @ x)) * (lora.alpha / lora.rank))
    return torch.cat(added)


@torch.no_grad()
def vae_output(tensors: Mapping[str, Tensor], config: VAEConfig) -> Tensor:
    """A small clip, encoded and decoded again: (1, T, 3, H, W), in the dtype of the weights."""
    dtype = next(iter(tensors.values())).dtype
    with torch.device("meta"):
        vae = VideoAutoencoder(config).to(dtype).eval()
    vae.load_state_dict({n: t.to(dtype) for n, t in tensors.items()}, assign=True)
    side, frames = 2 * vae.space_stride, vae.time_stride + 1
    shape = (1, frames, config.encoder.in_channels, side, side)
    video = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    return vae.decode(vae.encode(video).mode())
