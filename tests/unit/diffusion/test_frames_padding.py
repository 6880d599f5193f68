from __future__ import annotations

import pytest
import torch

from app.diffusion.frames_padding import drop_padding, pad_latent_frames, padding_count


@pytest.mark.parametrize(
    ("frames", "multiple", "count"),
    [(21, 2, 1), (41, 2, 1), (13, 2, 1), (22, 2, 0), (20, 2, 0), (13, 1, 0), (5, 4, 3)],
)
def test_missing_frames_are_counted(frames: int, multiple: int, count: int) -> None:
    assert padding_count(frames, multiple) == count
    assert pad_latent_frames(torch.zeros(1, frames, 1, 1, 1), multiple).shape[1] == frames + count


def test_padding_repeats_the_first_latent_in_front_and_comes_off_again() -> None:
    latents = torch.randn(2, 5, 3, 2, 2)

    padded = pad_latent_frames(latents, 4)

    assert torch.equal(padded[:, :3], latents[:, [0, 0, 0]])
    assert torch.equal(drop_padding(padded, 3), latents)


def test_nothing_is_copied_when_nothing_is_missing() -> None:
    latents = torch.randn(1, 4, 3, 2, 2)

    assert pad_latent_frames(latents, 2) is latents
    assert torch.equal(drop_padding(latents, 0), latents)
