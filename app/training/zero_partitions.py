"""The optimizer's state by parameter: which piece of which flat tensor this rank owns.

A slot is the place of a parameter's piece inside a flat fp32 tensor of the optimizer. The engine
makes the slots, differently for each ZeRO stage; reading and filling them is the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from app.checkpoint.fragments import Fragment
from app.checkpoint.layout import MOMENT_KINDS, WEIGHT_KINDS
from app.training.ema import MovingAverage

MASTER, EMA = WEIGHT_KINDS


Read = Callable[[str, str, int, int], Tensor]  # (name, kind, start, numel) -> flat fp32


@dataclass(frozen=True, slots=True)
class Slot:
    """Entries [start, start + numel) of parameter `name` are at `offset` of `flat`."""

    name: str
    group: int
    flat: Tensor  # fp32, a parameter of the inner optimizer
    offset: int
    start: int
    numel: int

    def cut(self, like_flat: Tensor) -> Tensor:
        """This piece of a tensor with the layout of `flat`."""
        return like_flat.detach().view(-1).narrow(0, self.offset, self.numel)


class OwnedState:
    """Master weights, moments and averages of the pieces that this rank owns."""

    def __init__(
        self,
        slots: Sequence[Slot],
        optimizer: torch.optim.Optimizer,
        average: MovingAverage | None,
    ) -> None:
        self.slots = list(slots)
        self._optimizer = optimizer
        self._average = average

    def fragments(self, owned: Callable[[str], bool] = lambda name: True) -> Iterator[Fragment]:
        """Copies on the CPU, one at a time, of the parameters that `owned` accepts."""
        for slot in self.slots:
            if owned(slot.name):
                for kind, tensor in self.tensors(slot):
                    values = slot.cut(tensor).float().cpu().clone()
                    yield Fragment(slot.name, kind, slot.start, values)

    def adam_steps(self) -> dict[str, int]:
        """Optimizer steps that Adam has counted, by number of the parameter group."""
        steps: dict[str, int] = {}
        for slot in self.slots:
            state = self._optimizer.state.get(slot.flat, {})
            taken = int(state.get("step", 0))
            steps[str(slot.group)] = max(taken, steps.get(str(slot.group), 0))
        return steps

    @torch.no_grad()
    def fill(self, read: Read, adam_steps: Mapping[str, int], ema_updates: int | None) -> None:
        """Put read values into every slot.

        Args:
            ema_updates: None: there are no averages to read, they start from the weights.
        """
        for slot in self.slots:
            for kind, tensor in self.tensors(slot):
                if kind == EMA and ema_updates is None:
                    continue
                values = read(slot.name, kind, slot.start, slot.numel)
                slot.cut(tensor).copy_(values.view(-1))
            # One counter per flat tensor: without it Adam's bias correction starts again.
            self._optimizer.state[slot.flat]["step"].fill_(adam_steps[str(slot.group)])
        if self._average is not None:
            if ema_updates is None:
                self._average.restart()
            else:
                self._average.updates = ema_updates

    def tensors(self, slot: Slot) -> Iterator[tuple[str, Tensor]]:
        """Weights, moments and average by kind, in the layout of the slot's flat tensor."""
        self._ensure_state(slot)
        state = self._optimizer.state[slot.flat]
        yield MASTER, slot.flat
        for moment in MOMENT_KINDS:
            yield moment, state[moment]
        if self._average is not None:
            yield EMA, self._average.of(slot.flat)

    def _ensure_state(self, slot: Slot) -> None:
        """Make Adam's state as its first step would."""
        state = self._optimizer.state[slot.flat]
        if state:
            return
        fused = bool(self._optimizer.defaults.get("fused"))
        device = slot.flat.device if fused else torch.device("cpu")
        state["step"] = torch.zeros((), dtype=torch.float32, device=device)
        for moment in MOMENT_KINDS:
            state[moment] = torch.zeros_like(slot.flat, memory_format=torch.preserve_format)


def balanced_owners(sizes: Mapping[str, int], ranks: int) -> dict[str, int]:
    """The rank that saves each replicated parameter: by size, largest first, to the least loaded.

    Every rank computes the same answer.
    """
    loads = [0] * ranks
    owner = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        rank = loads.index(min(loads))
        loads[rank] += sizes[name]
        owner[name] = rank
    return owner
