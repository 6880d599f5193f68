"""The 3D causal autoencoder: clips to latents and back.

Axes: B batch, T frames, C channels, H rows, W columns; t, h, w are those of the latents:
t = (T - 1) / 4 + 1, h = H / 8, w = W / 8 with the released sizes. This module is the only place
where (B, T, C, H, W), the order everywhere else, becomes (B, C, T, H, W) and back.
Source: CogVideoX, arXiv:2408.06072. Parameter names are the keys of 3d-vae.pt.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from app.config.schema.encoders import VAEConfig, VAEMemoryConfig, VAEPartConfig
from app.distributed.rank_group import ALONE, RankGroup
from app.errors import ConfigError, ShapeError
from app.models.vae.blocks import NORM_GROUPS
from app.models.vae.decoder import DecoderPast, VAEDecoder
from app.models.vae.encoder import VAEEncoder
from app.models.vae.gaussian import Gaussian
from app.models.vae.parts import Cuts, decode_in_tiles, encode_in_parts
from app.models.vae.tiles import Tiling


def decode_plan(num_latents: int) -> list[int]:
    """Cut a clip of latent frames into chunks to decode: 3, 2, 2, ... (2, 2, ... if even).

    Group norms see one chunk at a time, so the plan is part of the numbers. Odd counts follow
    the plan of the 1.0 sampler and of diffusers; for even ones, which the 1.0 plan cut short,
    the first chunk has two.

    Raises:
        ShapeError: no latents.
    """
    if num_latents < 1:
        raise ShapeError(
            f"{num_latents} latent frames cannot be decoded",
            where="decode_plan",
            fix="give at least one latent frame",
        )
    first = min(num_latents, 2 + num_latents % 2)
    return [first] + [2] * ((num_latents - first) // 2)


class VideoAutoencoder(nn.Module):
    """Frozen in every use here; runs in the dtype and on the device of its weights."""

    def __init__(self, config: VAEConfig) -> None:
        """Build the module with random weights.

        Raises:
            ConfigError: widths or compression that this architecture cannot have.
        """
        super().__init__()
        _check_part(config.encoder, "encoder_config")
        _check_part(config.decoder, "decoder_config")
        if config.encoder.z_channels != config.decoder.z_channels:
            raise ConfigError(
                f"encoder makes {config.encoder.z_channels} channels, "
                f"decoder reads {config.decoder.z_channels}",
                where="first_stage_config: z_channels",
                fix="set both to the same number",
            )
        self.config = config
        self.memory: VAEMemoryConfig = config.memory
        self._sharers: RankGroup = ALONE
        self._has_same_clip = False
        self.encoder = VAEEncoder(config.encoder)
        self.decoder = VAEDecoder(config.decoder)

    @property
    def time_stride(self) -> int:
        """Frames per latent frame, after the first."""
        return self.config.encoder.temporal_compress_times

    @property
    def space_stride(self) -> int:
        """Pixels per latent row and column."""
        return int(2 ** (len(self.config.encoder.ch_mult) - 1))

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return self.encoder.conv_in.conv.weight.dtype

    def share_encoding(self, group: RankGroup, *, has_same_clip: bool = False) -> None:
        """From now on all ranks of `group` call `encode` together and share its work.

        Args:
            group: the ranks; each works on a part of the time of every clip.
            has_same_clip: they all give the same clips. Else each has its own, and they take
                turns: the memory for a clip goes down, the time for all of them stays.
        """
        self._sharers, self._has_same_clip = group, has_same_clip

    @torch.no_grad()
    def encode(self, video: Tensor, samples_at_a_time: int | None = None) -> Gaussian:
        """Encode whole clips; group norms see all frames of a clip, however it is cut in time.

        After `share_encoding` every rank of the group calls this at the same time.

        Args:
            video: (B, T, 3, H, W), T = 4k + 1, values -1 to 1, any float dtype.
            samples_at_a_time: clips per pass; None: all. Only memory depends on it.

        Returns:
            Posterior with tensors (B, t, C, h, w) in the dtype of the weights.

        Raises:
            ShapeError: T is not 4k + 1, or H or W is not a multiple of 8.
        """
        self._check_video(video)
        if self._sharers.size > 1 and not self._has_same_clip:
            return self._encode_in_turn(video, samples_at_a_time)
        # An image has no time to share.
        can_share = self._latents_of(video.shape[1]) >= self._sharers.size
        return self._encode(video, self._sharers if can_share else ALONE, samples_at_a_time)

    @torch.no_grad()
    def decode(
        self,
        latents: Tensor,
        plan: Sequence[int] | None = None,
        samples_at_a_time: int | None = None,
    ) -> Tensor:
        """Decode a clip in chunks, frames carried from each to the next.

        Args:
            latents: (B, t, C, h, w), not scaled (divided by scale_factor).
            plan: latent frames per chunk; None: `decode_plan(t)`; `[t]`: one chunk.
            samples_at_a_time: clips per pass; None: all. Only memory depends on it.

        Returns:
            (B, T, 3, H, W), T = 4 (t - 1) + 1, about -1 to 1, not clamped.

        Raises:
            ShapeError: the latents have the wrong channels, or the plan does not add up to t.
        """
        chunks = list(decode_plan(latents.shape[1]) if plan is None else plan)
        self._check_latents(latents, chunks)
        batch = latents.transpose(1, 2).to(self.dtype)
        pieces = batch.split(samples_at_a_time or len(batch))
        videos = [self._frames(piece, chunks) for piece in pieces]
        return torch.cat(videos).transpose(1, 2).contiguous()

    def _encode(self, video: Tensor, group: RankGroup, samples_at_a_time: int | None) -> Gaussian:
        batch = video.transpose(1, 2).to(self.dtype)
        pieces = batch.split(samples_at_a_time or len(batch))
        moments = torch.cat([self._moments(piece, group) for piece in pieces])
        moments = moments.transpose(1, 2).contiguous()
        return Gaussian.from_moments(moments, is_sampled=self.config.sample_posterior)

    def _moments(self, video: Tensor, group: RankGroup) -> Tensor:
        """(B, 3, T, H, W) -> (B, 2 C, t, h, w)."""
        pixels = self.space_stride
        cuts = self._cuts(group, video.shape[3] // pixels, video.shape[4] // pixels)
        if not cuts.is_whole:
            return encode_in_parts(self.encoder, video, cuts)
        moments: Tensor = self.encoder(video)
        return moments

    def _encode_in_turn(self, video: Tensor, samples_at_a_time: int | None) -> Gaussian:
        """The ranks' own clips, one rank after the other."""
        group, video = self._sharers, video.to(self.dtype)
        shapes = [tuple(one.tolist()) for one in group.gathered(torch.tensor(video.shape))]
        for shape in shapes:  # all ranks see the same mistake, so none waits for another
            self._check_video(torch.empty(shape, device="meta"))
        posteriors: dict[int, Gaussian] = {}
        for rank, shape in enumerate(shapes):
            if self._latents_of(shape[1]) >= group.size:
                clip = video if rank == group.rank else video.new_empty(shape)
                clip = group.broadcast(clip, rank)
                posteriors[rank] = self._encode(clip, group, samples_at_a_time)
            elif rank == group.rank:  # an image has no time to share
                posteriors[rank] = self._encode(video, ALONE, samples_at_a_time)
        return posteriors[group.rank]

    def _frames(self, latents: Tensor, chunks: list[int]) -> Tensor:
        """(B, C, t, h, w) -> (B, 3, T, H, W)."""
        cuts = self._cuts(ALONE, latents.shape[3], latents.shape[4])
        if not cuts.tiling.is_one:
            return decode_in_tiles(self.decoder, latents, chunks, cuts)
        past: DecoderPast | None = None
        videos = []
        for chunk in latents.split(chunks, dim=2):
            frames, past = self.decoder(chunk, past, is_first_chunk=past is None)
            videos.append(frames)
        return torch.cat(videos, dim=2)

    def _cuts(self, group: RankGroup, rows: int, columns: int) -> Cuts:
        """Of a clip whose latents have so many rows and columns."""
        memory, pixels = self.memory, self.space_stride
        tiling = Tiling((rows, columns), (rows, columns), 0)
        if memory.tile_size is not None:
            high, wide = (size // pixels for size in memory.tile_size)
            size = (min(rows, high), min(columns, wide))
            tiling = Tiling((rows, columns), size, memory.tile_overlap // pixels)
        strides = (self.time_stride, pixels)
        return Cuts(group, tiling, strides, memory.encode_frames, memory.parking)

    def _latents_of(self, frames: int) -> int:
        return (frames - 1) // self.time_stride + 1

    def _check_video(self, video: Tensor) -> None:
        stride, pixels = self.time_stride, self.space_stride
        where = f"video of shape {tuple(video.shape)}, axes (B, T, C, H, W)"
        if video.ndim != 5 or video.shape[2] != self.config.encoder.in_channels:
            raise ShapeError(
                f"the VAE needs 5 axes with {self.config.encoder.in_channels} channels third",
                where=where,
                fix="give pixels as (B, T, C, H, W)",
            )
        frames = video.shape[1]
        if frames < 1 or (frames - 1) % stride:
            shorter = max(1, (frames - 1) // stride * stride + 1)
            raise ShapeError(
                f"{frames} frames are not {stride}k + 1",
                where=where,
                fix=f"cut the clip to {shorter} frames or take {shorter + stride}",
            )
        for axis, size in (("H", video.shape[3]), ("W", video.shape[4])):
            if size < pixels or size % pixels:
                raise ShapeError(
                    f"axis {axis} has {size} pixels, not a multiple of {pixels}",
                    where=where,
                    fix=f"resize {axis} to {max(1, round(size / pixels)) * pixels}",
                )

    def _check_latents(self, latents: Tensor, chunks: Sequence[int]) -> None:
        where = f"latents of shape {tuple(latents.shape)}, axes (B, T, C, H, W)"
        channels = self.config.decoder.z_channels
        if latents.ndim != 5 or latents.shape[2] != channels:
            raise ShapeError(
                f"the VAE needs 5 axes with {channels} channels third",
                where=where,
                fix="give latents as (B, T, C, H, W)",
            )
        if min(chunks, default=0) < 1 or sum(chunks) != latents.shape[1]:
            raise ShapeError(
                f"the chunks {list(chunks)} do not add up to {latents.shape[1]} latent frames",
                where=where,
                fix=f"use {decode_plan(latents.shape[1])}",
            )


def _check_part(part: VAEPartConfig, name: str) -> None:
    """Raise ConfigError for widths that group norm cannot split or an odd time compression."""
    for factor in part.ch_mult:
        if part.ch * factor % NORM_GROUPS:
            raise ConfigError(
                f"ch * ch_mult gives {part.ch * factor} channels, not a multiple of {NORM_GROUPS}",
                where=f"first_stage_config.params.{name}.params",
                fix=f"make ch a multiple of {NORM_GROUPS}",
            )
    times = part.temporal_compress_times
    if times < 1 or times & (times - 1) or times.bit_length() > len(part.ch_mult):
        raise ConfigError(
            f"temporal_compress_times is {times}",
            where=f"first_stage_config.params.{name}.params.temporal_compress_times",
            fix=f"use a power of two up to {2 ** (len(part.ch_mult) - 1)}",
        )
