"""The layers of the autoencoder run one by one, each over a clip that is cut in time and space.

A group norm needs the statistics of a whole feature map before its first value. So the clip does
not go through the network piece by piece: every layer runs over all pieces, and gathers the
statistics of what it makes for the norm that follows. Between two layers a map waits in pieces
(`parking`), and only the piece at hand is worked on. The same walk serves a clip that is cut over
ranks: statistics are put together over the group, and the past of a convolution comes from the
rank before. Cuts in time change nothing. Tiles of the frame see zeros where their neighbours are,
so they overlap (`tiles`), but share their statistics.
Axes: B batch, C channels, T frames, H rows, W columns; c, t, h, w are those of the latents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from app.models.vae.blocks import (
    NORM_GROUPS,
    Downsample,
    ResidualBlock,
    SpatialNorm,
    Upsample,
    swish,
)
from app.models.vae.causal_conv import CausalConv3d, conv_in_pieces
from app.models.vae.decoder import DecoderLevel, VAEDecoder
from app.models.vae.encoder import EncoderLevel, VAEEncoder
from app.models.vae.parking import Kept, Park, Parked
from app.models.vae.statistics import GroupStatistics, apply_norm
from app.models.vae.tiles import Core
from app.models.vae.time_split import ClipPart

Place = tuple[int, int]  # which tile, and which piece of its time
Prepare = Callable[[Place, Tensor], Tensor]  # a piece -> what the convolution reads


class FeatureMap:
    """The pieces of one map on this rank, per tile in order of time; statistics of them all."""

    def __init__(self, tiles: Sequence[Sequence[Parked]] = ()) -> None:
        self.tiles = [list(pieces) for pieces in tiles]
        self.statistics = GroupStatistics(NORM_GROUPS)

    def get(self, place: Place) -> Tensor:
        """A piece."""
        return self.tiles[place[0]][place[1]].get()

    def take(self, place: Place) -> Tensor:
        """A piece that nobody asks for again."""
        piece = self.get(place)
        self.tiles[place[0]][place[1]].drop()
        return piece

    def places(self) -> Iterator[Place]:
        """Of all pieces, a tile's after each other."""
        for tile, pieces in enumerate(self.tiles):
            for index in range(len(pieces)):
                yield tile, index


class TimeWalk:
    """Runs the encoder over one clip, or the decoder over chunks of one, for this rank."""

    def __init__(
        self, park: Park, part: ClipPart, cores: Sequence[Core], *, is_carried: bool = False
    ) -> None:
        """Start a walk.

        Args:
            park: where maps wait between layers.
            part: of the first chunk.
            cores: of the tiles.
            is_carried: more chunks follow, which need the last frames of this one.
        """
        self._park = park
        self._part = part
        self._cores = cores
        self._is_carried = is_carried
        self._pasts: list[Tensor] = []  # of the chunk before, in the order in which they came
        self._next_pasts: list[Tensor] = []

    def encode(self, encoder: VAEEncoder, tiles: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Moments (B, 2 c, t, h, w) of this rank's part of a clip, per tile.

        Args:
            encoder: only its weights are used.
            tiles: the pieces (B, 3, T_i, H, W) of each, in order; every T_i a multiple of 4, but
                4k + 1 for the first piece of the first rank.
        """
        x = FeatureMap([[Kept(piece) for piece in pieces] for pieces in tiles])
        x = self._conv(encoder.conv_in, x, _as_it_is)
        for level in encoder.down:
            assert isinstance(level, EncoderLevel)
            x = self._blocks(level.block, x, None)
            if level.downsample is not None:
                x = self._resample(level.downsample, x)
        x = self._blocks((encoder.mid.block_1, encoder.mid.block_2), x, None)
        x = self._conv(encoder.conv_out, x, self._normed(encoder.norm_out, x, None))
        return [torch.cat([piece.get() for piece in pieces], dim=2) for pieces in x.tiles]

    def decode(self, decoder: VAEDecoder, tiles: Sequence[Tensor], part: ClipPart) -> list[Tensor]:
        """Frames (B, 3, T, 8 h, 8 w) per tile, of this rank's part (B, c, t, h, w) of a chunk."""
        self._part = part
        self._pasts, self._next_pasts = self._next_pasts, []
        x = FeatureMap([[Kept(latents)] for latents in tiles])
        x = self._conv(decoder.conv_in, x, _as_it_is)
        x = self._blocks((decoder.mid.block_1, decoder.mid.block_2), x, tiles)
        for level in reversed(decoder.up):
            assert isinstance(level, DecoderLevel)
            x = self._blocks(level.block, x, tiles)
            if level.upsample is not None:
                x = self._resample(level.upsample, x)
        x = self._conv(decoder.conv_out, x, self._normed(decoder.norm_out, x, tiles))
        return [x.take(place) for place in x.places()]

    def _blocks(
        self,
        blocks: Sequence[nn.Module] | nn.ModuleList,
        x: FeatureMap,
        latents: Sequence[Tensor] | None,
    ) -> FeatureMap:
        for block in blocks:
            assert isinstance(block, ResidualBlock)
            x = self._block(block, x, latents)
        return x

    def _block(
        self, block: ResidualBlock, x: FeatureMap, latents: Sequence[Tensor] | None
    ) -> FeatureMap:
        shortcut = block.nin_shortcut

        def plus_input(place: Place, h: Tensor) -> Tensor:
            before = x.take(place)
            return h.add_(before if shortcut is None else conv_in_pieces(shortcut, before, None))

        h = self._conv(block.conv1, x, self._normed(block.norm1, x, latents), keep=True)
        return self._conv(block.conv2, h, self._normed(block.norm2, h, latents), plus_input)

    def _conv(
        self,
        conv: CausalConv3d,
        source: FeatureMap,
        prepare: Prepare,
        finish: Prepare | None = None,
        *,
        keep: bool = False,
    ) -> FeatureMap:
        """A convolution over every piece of `source`, of which `prepare` makes its input.

        Args:
            finish: turns a piece of the result into what is kept of it.
            keep: the source is asked for again.
        """
        made = FeatureMap([[] for _ in source.tiles])
        past: Tensor | None = None
        ready: Tensor | None = None
        for place in source.places():
            if place[1] == 0:
                past, ready = self._first_past(conv, source, place[0], prepare)
            if ready is None:
                piece = source.get(place) if keep else source.take(place)
                ready = prepare(place, piece)
                del piece  # what a norm made of it is enough
            out, past = conv(ready, past)
            ready = None
            self._add(made, place, out if finish is None else finish(place, out))
            if self._is_carried and place[1] == len(source.tiles[place[0]]) - 1:
                self._next_pasts.append(past)
        return made

    def _first_past(
        self, conv: CausalConv3d, source: FeatureMap, tile: int, prepare: Prepare
    ) -> tuple[Tensor | None, Tensor | None]:
        """The frames before this rank's part, and the prepared piece if there is only one."""
        own = self._pasts[len(self._next_pasts)] if self._pasts else None
        if self._part.group.size == 1:
            return own, None
        found: list[Tensor] = []  # from the last piece back, until they hold enough frames
        count = len(source.tiles[tile])
        for index in reversed(range(count)):
            found.insert(0, prepare((tile, index), source.get((tile, index))))
            if sum(piece.shape[2] for piece in found) >= conv.past_frames:
                break
        last = torch.cat([piece[:, :, -conv.past_frames :] for piece in found], dim=2)
        past = self._part.past(own, last[:, :, -conv.past_frames :].contiguous())
        return past, found[0] if count == 1 else None

    def _resample(self, layer: Downsample | Upsample, x: FeatureMap) -> FeatureMap:
        made = FeatureMap([[] for _ in x.tiles])
        for place in x.places():
            self._add(made, place, layer(x.take(place), is_first_chunk=self._is_first(place)))
        return made

    def _normed(
        self,
        norm: nn.GroupNorm | SpatialNorm,
        x: FeatureMap,
        latents: Sequence[Tensor] | None,
    ) -> Prepare:
        """Norm and swish with the statistics of the whole of `x`."""
        plain = norm.norm_layer if isinstance(norm, SpatialNorm) else norm
        factors = x.statistics.scale_and_shift(plain, self._part.group)

        def prepare(place: Place, piece: Tensor) -> Tensor:
            normed = apply_norm(piece, factors)
            if isinstance(norm, SpatialNorm):
                assert latents is not None, "a norm of the decoder needs the latents"
                own = latents[place[0]]
                normed = norm.modulate(normed, own, is_first_chunk=self._is_first(place))
            return swish(normed)

        return prepare

    def _add(self, made: FeatureMap, place: Place, x: Tensor) -> None:
        if x.shape[1] % NORM_GROUPS == 0:  # all but pixels and latents
            core = self._cores[place[0]].of(x)
            made.statistics.add(core, counts=not self._part.is_idle)
        made.tiles[place[0]].append(self._park(x))

    def _is_first(self, place: Place) -> bool:
        return place[1] == 0 and self._part.is_start


def _as_it_is(place: Place, piece: Tensor) -> Tensor:
    return piece
