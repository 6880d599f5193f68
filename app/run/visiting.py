"""Frozen parts that come when they are asked for and can be sent away again.

Training from encoded clips needs neither the text encoder nor, for text-to-video, the VAE.
Validation may: its videos are decoded, and its clips encoded where the cache lacks them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)


class Visitor:
    """One part, built by `build` when first used after each `leave`."""

    def __init__(self, name: str, build: Callable[[], Any]) -> None:
        self._name = name
        self._build = build
        self._part: Any = None

    @property
    def is_here(self) -> bool:
        return self._part is not None

    def here(self) -> Any:
        """The part itself."""
        if self._part is None:
            log.info("loading for now", extra={"part": self._name})
            self._part = self._build()
        return self._part

    def leave(self) -> None:
        """Give its memory back."""
        if self._part is None:
            return
        self._part = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class VisitingVae(Visitor):
    """Offers what a training step and an evaluation ask of a VAE."""

    def encode(self, video: Tensor, samples_at_a_time: int | None = None) -> Any:
        return self.here().encode(video, samples_at_a_time)

    def decode(self, latents: Tensor) -> Tensor:
        decoded: Tensor = self.here().decode(latents)
        return decoded


class VisitingTextEncoder(Visitor):
    """Offers what a conditioner asks of its encoder."""

    def encode(self, captions: Sequence[str]) -> Tensor:
        embedded: Tensor = self.here().encode(captions)
        return embedded
