"""Conversion between the parts of parameters that ranks hold and whole ones in a checkpoint.

Ranks that share a network hold parts of its wide parameters. The optimizer's state of every copy
is cut at the same places, so all ranks of a group have the same piece of their parts. A
checkpoint has whole parameters only, and can be read at any number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from math import prod

import torch
from torch import Tensor, nn

from app.checkpoint.fragments import Fragment
from app.distributed.rank_group import ALONE, RankGroup
from app.training.zero_partitions import Read, balanced_owners

AxisOf = Callable[[str], int | None]  # the axis along which a parameter is divided; None: whole


def nothing_divided(name: str) -> int | None:
    """Every rank has all of every parameter."""
    return None


@dataclass(frozen=True, slots=True)
class Division:
    """Which part of each parameter this rank has.

    Attributes:
        shapes: of this rank's parts, by name; a divided one has one or two axes.
        axis_of: see AxisOf.
        group: the ranks that share the network.
    """

    shapes: Mapping[str, tuple[int, ...]]
    axis_of: AxisOf = nothing_divided
    group: RankGroup = ALONE

    @classmethod
    def of(cls, network: nn.Module, axis_of: AxisOf, group: RankGroup) -> Division:
        """The division of a network whose parts are in place."""
        shapes = {name: tuple(p.shape) for name, p in network.named_parameters()}
        return cls(shapes, nothing_divided if group.size == 1 else axis_of, group)

    @torch.no_grad()
    def prepare(self, network: nn.Module) -> None:
        """Mark the parts for DeepSpeed's norm of the gradient; make the rest equal on all ranks."""
        if self.group.size == 1:
            return
        for name, parameter in network.named_parameters():
            if self.axis_of(name) is None:
                self.make_equal(parameter)
            else:
                parameter.tensor_model_parallel = True  # type: ignore[attr-defined]

    def make_equal(self, own: Tensor) -> None:
        """Overwrite a tensor that every rank has all of by that of the first rank."""
        if own.numel():
            own.copy_(self.group.broadcast(own))

    def whole_shape(self, name: str) -> tuple[int, ...]:
        """The shape of all of a parameter."""
        axis, shape = self.axis_of(name), self.shapes[name]
        return tuple(n * self.group.size if i == axis else n for i, n in enumerate(shape))

    def norm(self, gradients: Mapping[str, Tensor]) -> float:
        """Of all gradients together, those of undivided parameters counted once."""
        counted = [
            torch.linalg.vector_norm(gradient)
            for name, gradient in gradients.items()
            if self.group.rank == 0 or self.axis_of(name) is not None
        ]
        if self.group.size == 1:
            return float(torch.linalg.vector_norm(torch.stack(counted)))
        device = next(iter(gradients.values())).device
        squares = [norm.double() ** 2 for norm in counted]
        total = torch.stack([torch.zeros((), dtype=torch.float64, device=device), *squares]).sum()
        return float(self.group.sum(total).sqrt())

    # from parts to the whole

    def whole_fragments(self, fragments: Iterable[Fragment]) -> Iterator[Fragment]:
        """This rank's pieces with their places in the whole parameters; each comes from one rank.

        Every rank of the group must read this to its end.
        """
        if self.group.size == 1:
            yield from fragments
            return
        sizes = {name: prod(shape) for name, shape in self.shapes.items()}
        owner = balanced_owners(sizes, self.group.size)
        for (name, start), kinds in groupby(fragments, key=lambda f: (f.name, f.start)):
            axis = self.axis_of(name)
            if axis == 1:
                yield from self._joined_columns(list(kinds))
            elif axis == 0:
                first = self.group.rank * prod(self.shapes[name]) + start
                yield from (Fragment(name, f.kind, first, f.values) for f in kinds)
            elif owner[name] == self.group.rank:
                yield from kinds
            else:
                for _ in kinds:
                    pass

    def _joined_columns(self, kinds: list[Fragment]) -> Iterator[Fragment]:
        """A piece of a part (o, w) of a parameter (o, w * size), which is divided by columns.

        Full rows are gathered and divided among the ranks; an incomplete row at either end of the
        piece is a piece of its own.
        """
        name, start, numel = kinds[0].name, kinds[0].start, kinds[0].values.numel()
        width, size, rank = self.shapes[name][1], self.group.size, self.group.rank
        stop = start + numel
        first_row, last_row = -(-start // width), stop // width
        count = max(0, last_row - first_row)
        mine = range(rank * count // size, (rank + 1) * count // size)
        rows = [self._my_rows(f, first_row * width - start, count, mine) for f in kinds]
        if len(mine):
            place = (first_row + mine.start) * width * size
            for fragment, values in zip(kinds, rows, strict=True):
                yield Fragment(name, fragment.kind, place, values)
        ends = [(start, min(first_row * width, stop)), (max(last_row * width, start), stop)]
        for begin, end in ends if count or last_row >= first_row else [(start, stop)]:
            if begin < end:
                row, column = divmod(begin, width)
                place = (row * size + rank) * width + column
                for fragment in kinds:
                    values = fragment.values[begin - start : end - start].clone()
                    yield Fragment(name, fragment.kind, place, values)

    def _my_rows(self, fragment: Fragment, first: int, count: int, mine: range) -> Tensor:
        """The rows `mine` of `count` full ones, in their whole width, flat."""
        if not count:
            return fragment.values[:0]
        width = self.shapes[fragment.name][1]
        parts = self.group.gathered(fragment.values[first : first + count * width])
        rows = [part.view(count, width)[mine.start : mine.stop] for part in parts]
        return torch.cat(rows, dim=1).reshape(-1)

    # from the whole to parts

    def reader(self, read: Read) -> Read:
        """Reads pieces of this rank's parts from whole parameters."""
        return read if self.group.size == 1 else lambda *piece: self._read(read, *piece)

    def _read(self, read: Read, name: str, kind: str, start: int, numel: int) -> Tensor:
        axis, rank = self.axis_of(name), self.group.rank
        if axis is None:
            return read(name, kind, start, numel)
        if axis == 0:
            return read(name, kind, rank * prod(self.shapes[name]) + start, numel)
        width = self.shapes[name][1]
        whole_width = width * self.group.size
        first, last = start // width, -(-(start + numel) // width)
        rows = read(name, kind, first * whole_width, (last - first) * whole_width)
        ours = rows.view(last - first, whole_width)[:, rank * width : (rank + 1) * width]
        return ours.reshape(-1)[start - first * width :][:numel]
