"""Caption dropout: whole embeddings become zeros, by one draw per sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from app.distributed.seeding import KeyedDraws
from app.models.text.conditioner import Conditioner


class Lengths:
    """A caption encoder as a user may register one: every value is the caption's length."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype

    def encode(self, captions: Sequence[str]) -> Tensor:
        lengths = torch.tensor([len(caption) for caption in captions], dtype=self.dtype)
        return lengths[:, None, None].expand(-1, 4, 3)


class RecordedDraws(KeyedDraws):
    """Keeps sample 1 only."""

    def __init__(self) -> None:
        super().__init__(0, [0, 1, 2])
        self.asked: list[tuple[str, int, float]] = []

    def keep(self, purpose: str, count: int, probability: float) -> Tensor:
        self.asked.append((purpose, count, probability))
        return torch.tensor([0.0, 1.0, 0.0])


CAPTIONS = ["one", "three", "seven"]


def test_dropped_captions_are_zeros_and_others_are_untouched() -> None:
    draws = RecordedDraws()

    text = Conditioner(Lengths(), ucg_rate=0.25).embed(CAPTIONS, draws)

    assert text[:, 0, 0].tolist() == [0.0, 5.0, 0.0]
    assert text.shape == (3, 4, 3)
    assert draws.asked == [("caption_dropout", 3, 0.75)]


def test_nothing_is_drawn_without_dropout() -> None:
    draws = RecordedDraws()

    without_rate = Conditioner(Lengths(), ucg_rate=0.0).embed(CAPTIONS, draws)
    without_draws = Conditioner(Lengths(), ucg_rate=0.5).embed(CAPTIONS, None)

    assert draws.asked == []
    torch.testing.assert_close(without_rate, without_draws)
    assert without_rate[:, 0, 0].tolist() == [3.0, 5.0, 5.0]


def test_the_mask_promotes_low_precision_embeddings_to_fp32() -> None:
    conditioner = Conditioner(Lengths(torch.bfloat16), ucg_rate=0.1)

    assert conditioner.embed(CAPTIONS, RecordedDraws()).dtype == torch.float32
    assert conditioner.embed(CAPTIONS, None).dtype == torch.bfloat16


def test_about_the_asked_share_of_captions_is_dropped() -> None:
    draws = KeyedDraws(seed=1, positions=range(1000))

    text = Conditioner(Lengths(), ucg_rate=0.1).embed(["caption"] * 1000, draws)

    dropped = int((text == 0).all(dim=(1, 2)).sum())
    assert 70 <= dropped <= 130  # three standard deviations
