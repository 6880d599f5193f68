from __future__ import annotations

import numpy as np
import pytest
import torch

from app.data.video.transforms import (
    frame_to_model_size,
    resize_and_crop,
    resized_size,
    scale_pixels,
)
from app.errors import ShapeError


@pytest.mark.parametrize(
    ("size", "target"), [((1080, 1920), (480, 720)), ((500, 300), (32, 48)), ((33, 49), (33, 49))]
)
def test_resized_frame_covers_the_wanted_size(
    size: tuple[int, int], target: tuple[int, int]
) -> None:
    rows, columns = resized_size(size, target)

    assert rows >= target[0]
    assert columns >= target[1]
    assert rows == target[0] or columns == target[1]


def test_a_frame_of_the_right_size_passes_unchanged() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)

    assert torch.equal(
        frame_to_model_size(frame, (16, 24)), torch.from_numpy(frame.transpose(2, 0, 1))
    )


def test_one_frame_at_a_time_equals_all_at_once() -> None:
    video = torch.randint(0, 256, (3, 3, 40, 67), dtype=torch.uint8)

    together = resize_and_crop(video, (16, 24))
    singly = torch.stack([frame_to_model_size(f.permute(1, 2, 0).numpy(), (16, 24)) for f in video])

    assert torch.equal(together, singly)


def test_pixels_become_minus_one_to_one() -> None:
    pixels = torch.tensor([0, 255, 127], dtype=torch.uint8)

    torch.testing.assert_close(scale_pixels(pixels), torch.tensor([-1.0, 1.0, -0.5 / 127.5]))
    assert scale_pixels(pixels, torch.bfloat16).dtype == torch.bfloat16


def test_floats_count_as_normalised() -> None:
    latents = torch.randn(2, 4)

    assert torch.equal(scale_pixels(latents), latents)


def test_a_frame_without_pixels_is_an_error() -> None:
    with pytest.raises(ShapeError):
        resize_and_crop(torch.zeros(1, 3, 0, 5, dtype=torch.uint8), (16, 16))
