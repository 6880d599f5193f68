"""Captions to text tokens for the network, with captions dropped in training.

Axes: B batch, n text tokens, D width of the text encoder.
Source: upstream's GeneralConditioner with one embedder. A dropped caption is an embedding of
zeros, not the embedding of an empty caption; guidance in sampling uses the same zeros
(`Conditioning.for_guidance`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from app.distributed.seeding import Draws

DROPOUT_PURPOSE = "caption_dropout"


class CaptionEncoder(Protocol):
    """Anything that turns captions into tokens: T5TextEncoder, or a class that a user registers."""

    def encode(self, captions: Sequence[str]) -> Tensor:
        """(B, n, D) for B captions."""
        ...


class Conditioner:
    """A frozen caption encoder with caption dropout."""

    def __init__(self, encoder: CaptionEncoder, ucg_rate: float) -> None:
        """Wrap an encoder.

        Args:
            encoder: what embeds captions.
            ucg_rate: probability that a caption's embedding becomes zeros in training.
        """
        self.encoder = encoder
        self.ucg_rate = ucg_rate

    @torch.no_grad()
    def embed(self, captions: Sequence[str], draws: Draws | None) -> Tensor:
        """Embed captions.

        Args:
            captions: B captions.
            draws: for dropout in training; None: no caption is dropped.

        Returns:
            (B, n, D). fp32 if captions could be dropped: the mask is fp32 and promotes the
            product, as upstream's does; the network casts. Otherwise in the dtype of the encoder.
        """
        return self.drop(self.encoder.encode(captions), draws)

    def drop(self, text: Tensor, draws: Draws | None) -> Tensor:
        """Zero whole embeddings of `text` (B, n, D), as `embed` does; for cached embeddings."""
        if draws is None or self.ucg_rate <= 0:
            return text
        keep = draws.keep(DROPOUT_PURPOSE, len(text), 1 - self.ucg_rate)
        return text * keep.to(text.device)[:, None, None]
