"""The 3D causal autoencoder: clips to latents and back.

Axes: B batch, T frames, C channels, H rows, W columns; t, h, w are those of the latents:
t = (T - 1) / 4 + 1, h = H / 8, w = W / 8 with the released sizes. This module is the only place
where (B, T, C, H, W), the order everywhere else, becomes (B, C, T, H, W) and back.
Source: CogVideoX, arXiv:2408.06072. Parameter names are the keys of 3d-vae.pt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from app.config.schema.encoders import VAEConfig, VAEMemoryConfig, VAEPartConfig
from app.distributed.rank_group import ALONE, RankGroup
from app.errors import ConfigError, ShapeError, WeightsError
from app.models.vae.blocks import NORM_GROUPS
from app.models.vae.decoder import DecoderPast, VAEDecoder
from app.models.vae.encoder import VAEEncoder
from app.models.vae.gaussian import Gaussian
from app.models.vae.parts import Cuts, decode_in_parts, encode_in_parts
from app.models.vae.tiles import Tiling
from app.models.vae.time_split import check_shares

MAX_LISTED = 5  # keys that an error message lists


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

    def __init__(
        self,
        config: VAEConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
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
        self.encoder = VAEEncoder(config.encoder, device=device, dtype=dtype)
        self.decoder = VAEDecoder(config.decoder, device=device, dtype=dtype)

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

    def load_weights(self, state: Mapping[str, Tensor], *, where: str) -> None:
        """Copy the tensors of 3d-vae.pt into the module.

        Args:
            state: `encoder.*` and `decoder.*`; keys with a prefix of `config.ignore_keys`
                (the discriminator of upstream's training) are left out.
            where: the file, for the message.

        Raises:
            WeightsError: a tensor is missing, unexpected or of another shape.
        """
        ignored = self.config.ignore_keys
        kept = {k: v for k, v in state.items() if not (ignored and k.startswith(ignored))}
        own = self.state_dict()
        problems = [
            *(f"missing {key}" for key in own if key not in kept),
            *(f"unexpected {key}" for key in kept if key not in own),
            *(
                f"{key} is {tuple(kept[key].shape)}, expected {tuple(tensor.shape)}"
                for key, tensor in own.items()
                if key in kept and kept[key].shape != tensor.shape
            ),
        ]
        if problems:
            more = f" and {len(problems) - MAX_LISTED} more" if len(problems) > MAX_LISTED else ""
            raise WeightsError(
                f"VAE weights do not fit: {'; '.join(problems[:MAX_LISTED])}{more}",
                where=where,
                fix="check that ckpt_path names the 3d-vae.pt of this model and that "
                "encoder_config and decoder_config are its sizes",
            )
        self.load_state_dict(kept)

    def share_encoding(self, group: RankGroup, *, has_same_clip: bool = False) -> None:
        """From now on `encode` is called by all ranks of `group` at once and shared by them.

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
    def encode_together(
        self, video: Tensor, group: RankGroup, samples_at_a_time: int | None = None
    ) -> Gaussian:
        """Encode a clip that every rank of `group` has; each works on a part of its time.

        Returns:
            As `encode`, on every rank.

        Raises:
            ShapeError: as `encode`, or fewer latent frames than ranks; before anything is sent.
        """
        self._check_video(video)
        check_shares(self._latents_of(video.shape[1]), group.size, self.time_stride)
        return self._encode(video, group, samples_at_a_time)

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
            plan: latent frames per chunk; None: `decode_plan(t)`; `[t]`: the whole clip at once.
            samples_at_a_time: clips per pass; None: all. Only memory depends on it.

        Returns:
            (B, T, 3, H, W), T = 4 (t - 1) + 1, about -1 to 1, not clamped.

        Raises:
            ShapeError: the latents have the wrong channels, or the plan does not add up to t.
        """
        return self._decode(latents, ALONE, plan, samples_at_a_time)

    @torch.no_grad()
    def decode_together(
        self,
        latents: Tensor,
        group: RankGroup,
        plan: Sequence[int] | None = None,
        samples_at_a_time: int | None = None,
    ) -> Tensor:
        """Decode latents that every rank of `group` has; each works on a part of every chunk.

        Returns:
            As `decode`, on every rank.

        Raises:
            ShapeError: as `decode`, or fewer latent frames than ranks; before anything is sent.
        """
        self._check_latents(latents, self._chunks(latents, plan))
        check_shares(latents.shape[1], group.size, self.time_stride)
        return self._decode(latents, group, plan, samples_at_a_time)

    def _encode(self, video: Tensor, group: RankGroup, samples_at_a_time: int | None) -> Gaussian:
        self._check_video(video)
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
        own: Gaussian | None = None
        for rank, shape in enumerate(shapes):
            is_own = rank == group.rank
            if self._latents_of(shape[1]) < group.size:  # an image
                if is_own:
                    own = self._encode(video, ALONE, samples_at_a_time)
                continue
            clip = video if is_own else video.new_empty(shape)
            clip = group.broadcast(clip, rank)
            found = self._encode(clip, group, samples_at_a_time)
            own = found if is_own else own
        assert own is not None, "every rank has its turn"
        return own

    def _decode(
        self,
        latents: Tensor,
        group: RankGroup,
        plan: Sequence[int] | None,
        samples_at_a_time: int | None,
    ) -> Tensor:
        chunks = self._chunks(latents, plan)
        self._check_latents(latents, chunks)
        batch = latents.transpose(1, 2).to(self.dtype)
        pieces = batch.split(samples_at_a_time or len(batch))
        videos = [self._frames(piece, chunks, group) for piece in pieces]
        return torch.cat(videos).transpose(1, 2).contiguous()

    def _frames(self, latents: Tensor, chunks: Sequence[int], group: RankGroup) -> Tensor:
        """(B, C, t, h, w) -> (B, 3, T, H, W)."""
        cuts = self._cuts(group, latents.shape[3], latents.shape[4])
        if group.size == 1 and len(cuts.tiling.starts) == 1:
            return torch.cat(list(self._decode_chunks(latents, chunks)), dim=2)
        return decode_in_parts(self.decoder, latents, chunks, cuts)

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

    def _chunks(self, latents: Tensor, plan: Sequence[int] | None) -> list[int]:
        return list(decode_plan(latents.shape[1]) if plan is None else plan)

    def _decode_chunks(self, latents: Tensor, chunks: Sequence[int]) -> Iterator[Tensor]:
        """Frames (B, 3, T_i, H, W) of every chunk of `latents` (B, C, t, h, w)."""
        past: DecoderPast | None = None
        for chunk in latents.split(list(chunks), dim=2):
            frames, past = self.decoder(chunk, past, is_first_chunk=past is None)
            yield frames

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
