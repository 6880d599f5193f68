"""What a dataset of a user's own may give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from app.data.sources.registered import MapSource
from app.errors import DataError

CLIP = torch.rand(5, 3, 4, 6) * 2 - 1


def read(clip: object) -> Tensor | np.ndarray:
    return MapSource([{"mp4": clip, "txt": ""}], "mine").read(0, 0)["mp4"]


@pytest.mark.parametrize(
    "clip",
    [
        CLIP,
        CLIP.bfloat16(),
        CLIP.numpy(),
        torch.stack([CLIP, CLIP]),
        (CLIP * 127 + 128).to(torch.uint8),
        torch.randn(2, 16, 4, 6) * 4,
    ],
    ids=["floats", "bf16", "numpy", "views", "bytes", "latents"],
)
def test_pixels_and_latents_pass_unchanged(clip: Tensor | np.ndarray) -> None:
    assert read(clip) is clip


@pytest.mark.parametrize(
    ("clip", "what"),
    [
        ((CLIP + 1) * 127.5, "holds floats of"),
        (torch.full_like(CLIP, torch.nan), "holds floats of nan to nan"),
        ((CLIP * 100).long(), "holds torch.int64"),
        (CLIP.permute(0, 2, 3, 1), r"\(5, 4, 6, 3\): channels come last"),
    ],
)
def test_pixels_that_would_train_wrongly_are_refused(clip: Tensor, what: str) -> None:
    with pytest.raises(DataError, match=what) as caught:
        read(clip)

    assert caught.value.where == "item 0 of mine"
    assert "floats in [-1, 1]" in caught.value.fix
