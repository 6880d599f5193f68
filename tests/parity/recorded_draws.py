"""Random draws read from a recording instead of a generator."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class RecordedDraws:
    """`Draws` that answers each purpose with its recorded tensor and keeps the order of asking.

    A purpose that was not recorded is a KeyError, an answer of another shape an assertion.
    """

    like_upstream = True

    def __init__(self, recorded: Mapping[str, Tensor]) -> None:
        self.recorded = recorded
        self.asked: list[str] = []

    def normal_like(self, purpose: str, x: Tensor) -> Tensor:
        return self._next(purpose, x.shape).to(x)

    def normal(self, purpose: str, count: int) -> Tensor:
        return self._next(purpose, (count,))

    def keep(self, purpose: str, count: int, probability: float) -> Tensor:
        return self._next(purpose, (count,))

    def keep_all(self, purpose: str, count: int, probability: float) -> Tensor:
        # python's random.random(): one number for the whole micro-batch
        number = self._next(purpose, ()).item()
        return torch.full((count,), float(number >= 1 - probability))

    def integers(self, purpose: str, low: Tensor, high: Tensor) -> Tensor:
        drawn = self._next(purpose, low.shape)
        assert bool((drawn >= low).all() and (drawn < high).all()), f"{purpose}: {drawn}"
        return drawn

    def _next(self, purpose: str, shape: tuple[int, ...]) -> Tensor:
        self.asked.append(purpose)
        answer = self.recorded[purpose]
        assert tuple(answer.shape) == tuple(shape), f"{purpose}: {answer.shape}, asked {shape}"
        return answer
