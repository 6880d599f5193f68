"""The layers of the autoencoder run one by one, each over a clip that is cut in time and space.

A group norm needs the statistics of a whole feature map before its first value. So the clip does
not go through the network piece by piece: every layer runs over all pieces, and gathers the
statistics of what it makes for the norm that follows. Between two layers a map waits in pieces
(`offload`), and only the piece at hand is worked on. The same walk serves an encode that ranks
share: statistics are put together over the group, and the past of a convolution comes from the
rank before. Cuts in time change nothing. Tiles of the frame see zeros where their neighbours are,
so they overlap (`tiles`), but share their statistics.
Axes: B batch, C channels, T frames, H rows, W columns; c, t, h, w are those of the latents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product

import torch
from torch import Tensor, nn

from app.distributed.rank_group import ALONE, RankGroup
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
from app.models.vae.offload import Offload, Offloaded, OnDevice
from app.models.vae.statistics import GroupStatistics, apply_norm
from app.models.vae.tiles import Core
from app.models.vae.time_split import past_from_neighbour

Place = tuple[int, int]  # which tile, and which piece of its time
Prepare = Callable[[Place, Tensor], Tensor]  # a piece -> what the convolution reads


class FeatureMap:
    """The pieces of one map on this rank, and statistics of them all."""

    def __init__(self) -> None:
        self._pieces: dict[Place, Offloaded] = {}
        self.statistics = GroupStatistics(NORM_GROUPS)

    def put(self, place: Place, piece: Offloaded) -> None:
        self._pieces[place] = piece

    def get(self, place: Place) -> Tensor:
        """A piece, which stays in the map."""
        return self._pieces[place].get()

    def take(self, place: Place) -> Tensor:
        """A piece, which leaves the map."""
        piece = self._pieces.pop(place)
        x = piece.get()
        piece.drop()
        return x


class TimeWalk:
    """Runs the encoder over one clip, or the decoder over chunks of one, for this rank."""

    def __init__(
        self,
        offload: Offload,
        cores: Sequence[Core],
        group: RankGroup = ALONE,
        *,
        is_carried: bool = False,
    ) -> None:
        """Start a walk.

        Args:
            offload: how maps wait between layers.
            cores: of the tiles.
            group: the ranks that share an encode.
            is_carried: a decode has more than one chunk: each needs the last frames of the one
                before.
        """
        self._offload = offload
        self._cores = cores
        self._group = group
        self._is_carried = is_carried
        self._num_pieces = 1  # of each tile
        self._has_start = group.rank == 0
        self._pasts: list[Tensor] = []  # of the chunk before, in the order in which they came
        self._next_pasts: list[Tensor] = []

    def encode(self, encoder: VAEEncoder, tiles: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Moments (B, 2 c, t, h, w) of this rank's part of a clip, per tile.

        Args:
            encoder: only its weights are used.
            tiles: the pieces (B, 3, T_i, H, W) of each, in order; every T_i a multiple of 4, but
                4k + 1 for the first piece of the first rank.
        """
        self._num_pieces = len(tiles[0])
        x = self._conv(encoder.conv_in, self._input(tiles), _unchanged)
        for level in encoder.down:
            assert isinstance(level, EncoderLevel)
            x = self._blocks(level.block, x, None)
            if level.downsample is not None:
                x = self._resample(level.downsample, x)
        x = self._blocks((encoder.mid.block_1, encoder.mid.block_2), x, None)
        x = self._conv(encoder.conv_out, x, self._normed(encoder.norm_out, x, None))
        pieces = [x.take(place) for place in self._places()]
        count = self._num_pieces
        return [torch.cat(pieces[i : i + count], dim=2) for i in range(0, len(pieces), count)]

    def decode(self, decoder: VAEDecoder, tiles: Sequence[Tensor]) -> list[Tensor]:
        """Frames (B, 3, T, 8 h, 8 w) of the next chunk (B, c, t, h, w) of a clip, per tile."""
        x = self._conv(decoder.conv_in, self._input([[tile] for tile in tiles]), _unchanged)
        x = self._blocks((decoder.mid.block_1, decoder.mid.block_2), x, tiles)
        for level in reversed(decoder.up):
            assert isinstance(level, DecoderLevel)
            x = self._blocks(level.block, x, tiles)
            if level.upsample is not None:
                x = self._resample(level.upsample, x)
        x = self._conv(decoder.conv_out, x, self._normed(decoder.norm_out, x, tiles))
        self._has_start = False
        self._pasts, self._next_pasts = self._next_pasts, []
        return [x.take(place) for place in self._places()]

    def _places(self) -> Iterator[Place]:
        """Of the pieces of every map, a tile's after each other."""
        return product(range(len(self._cores)), range(self._num_pieces))

    def _input(self, tiles: Sequence[Sequence[Tensor]]) -> FeatureMap:
        x = FeatureMap()
        for tile, index in self._places():
            x.put((tile, index), OnDevice(tiles[tile][index]))
        return x

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
            keep: the source is read again later.
        """
        made = FeatureMap()
        past: Tensor | None = None
        ready: Tensor | None = None
        for place in self._places():
            if place[1] == 0:
                past, ready = self._first_past(conv, source, place[0], prepare)
            if ready is None:
                piece = source.get(place) if keep else source.take(place)
                ready = prepare(place, piece)
                del piece  # what a norm made of it is enough
            out, past = conv(ready, past)
            ready = None
            self._add(made, place, out if finish is None else finish(place, out))
            if self._is_carried and place[1] == self._num_pieces - 1:
                self._next_pasts.append(past)
        return made

    def _first_past(
        self, conv: CausalConv3d, source: FeatureMap, tile: int, prepare: Prepare
    ) -> tuple[Tensor | None, Tensor | None]:
        """The frames before this rank's part, and the prepared piece if there is only one."""
        if self._group.size == 1:
            return self._pasts[len(self._next_pasts)] if self._pasts else None, None
        found: list[Tensor] = []  # from the last piece back, until they hold enough frames
        for index in reversed(range(self._num_pieces)):
            found.insert(0, prepare((tile, index), source.get((tile, index))))
            if sum(piece.shape[2] for piece in found) >= conv.past_frames:
                break
        last = torch.cat([piece[:, :, -conv.past_frames :] for piece in found], dim=2)
        past = past_from_neighbour(last[:, :, -conv.past_frames :].contiguous(), self._group)
        return past, found[0] if self._num_pieces == 1 else None

    def _resample(self, layer: Downsample | Upsample, x: FeatureMap) -> FeatureMap:
        made = FeatureMap()
        for place in self._places():
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
        factors = x.statistics.scale_and_shift(plain, self._group)

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
            made.statistics.add(self._cores[place[0]].of(x))
        made.put(place, self._offload(x))

    def _is_first(self, place: Place) -> bool:
        return place[1] == 0 and self._has_start


def _unchanged(place: Place, piece: Tensor) -> Tensor:
    return piece
