"""Encode and decode of one clip in parts: pieces of time, tiles of the frame, shares of ranks.

Statistics of group norms are those of all parts. Between ranks that is so whatever `gather_norm`
says: with upstream's `gather_norm: false` a result depends on the number of ranks.
Axes in this package: (B, C, T, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from app.distributed.rank_group import RankGroup
from app.models.vae.decoder import VAEDecoder
from app.models.vae.encoder import VAEEncoder
from app.models.vae.offload import offloading
from app.models.vae.tiles import Tiling
from app.models.vae.time_split import shares
from app.models.vae.time_walk import TimeWalk


@dataclass(frozen=True, slots=True)
class Cuts:
    """How a clip is cut.

    Attributes:
        group: the ranks that share it; all have the same clip.
        tiling: of its frames.
        strides: frames and pixels per latent.
        encode_frames: per piece of an encode, a multiple of the stride; the piece with the first
            frame has one more. None: all frames of a rank in one piece.
        offload: where pieces wait; see `offloading`.
    """

    group: RankGroup
    tiling: Tiling
    strides: tuple[int, int]
    encode_frames: int | None = None
    offload: str = "device"

    @property
    def is_whole(self) -> bool:
        """Nothing is cut."""
        return self.tiling.is_one and self.group.size == 1 and self.encode_frames is None


def encode_in_parts(encoder: VAEEncoder, video: Tensor, cuts: Cuts) -> Tensor:
    """Moments (B, 2 c, t, h, w) of a clip (B, 3, T, H, W), T = 4k + 1; on every rank.

    t is at least the number of ranks.
    """
    group, (stride, pixels) = cuts.group, cuts.strides
    counts = shares((video.shape[2] - 1) // stride + 1, group.size)
    first = sum(counts[: group.rank])
    own = _frames(video, first, counts[group.rank], stride)
    lengths = _piece_lengths(own.shape[2], first == 0, cuts.encode_frames)
    tiles = [crop.split(lengths, dim=2) for crop in cuts.tiling.crops(own, pixels)]
    place = cuts.offload if len(tiles) * len(lengths) > 1 else "device"
    with offloading(place) as offload:
        moments = TimeWalk(offload, cuts.tiling.cores, group).encode(encoder, tiles)
    return _gathered(cuts.tiling.blended(moments, 1), counts, group)


def decode_in_tiles(
    decoder: VAEDecoder, latents: Tensor, chunks: Sequence[int], cuts: Cuts
) -> Tensor:
    """Frames (B, 3, T, H, W) of latents (B, c, t, h, w), in chunks of so many latent frames."""
    tiling, pixels = cuts.tiling, cuts.strides[1]
    done = []
    with offloading(cuts.offload) as offload:
        walk = TimeWalk(offload, tiling.cores, cuts.group, is_carried=len(chunks) > 1)
        for chunk in latents.split(list(chunks), dim=2):
            tiles = walk.decode(decoder, tiling.crops(chunk, 1))
            done.append(tiling.blended(tiles, pixels))
    return torch.cat(done, dim=2)


def _frames(video: Tensor, first: int, count: int, stride: int) -> Tensor:
    """The frames of latent frames `first` to `first + count`; the very first has one frame."""
    start = 0 if first == 0 else (first - 1) * stride + 1
    return video[:, :, start : (first + count - 1) * stride + 1]


def _piece_lengths(frames: int, has_start: bool, at_a_time: int | None) -> list[int]:
    """Lengths of pieces of `at_a_time` frames, the first with one more where the clip starts."""
    if at_a_time is None:
        return [frames]
    lengths: list[int] = []
    while frames:
        length = min(frames, at_a_time + (has_start and not lengths))
        lengths.append(length)
        frames -= length
    return lengths


def _gathered(own: Tensor, counts: Sequence[int], group: RankGroup) -> Tensor:
    """The parts of all ranks, `counts` frames each, one after the other in time."""
    if group.size == 1:
        return own
    missing = max(counts) - own.shape[2]
    padded = torch.cat([own, own.new_zeros(*own.shape[:2], missing, *own.shape[3:])], dim=2)
    parts = group.gathered(padded)
    return torch.cat([part[:, :, :n] for part, n in zip(parts, counts, strict=True)], dim=2)
