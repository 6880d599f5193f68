"""Strips, sheets and the PNG file, read back by another library."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from app.evaluation.contact_sheet import FRAMES_SHOWN, GAP, STRIP_ROWS, contact_sheet, png, strip


def test_a_png_is_read_back_exactly_by_another_library() -> None:
    picture = torch.randint(0, 256, (3, 7, 5), dtype=torch.uint8)

    with Image.open(io.BytesIO(png(picture))) as found:
        assert found.mode == "RGB"
        assert np.array_equal(np.asarray(found), picture.permute(1, 2, 0).numpy())


def test_a_strip_shows_the_first_and_the_last_frame_and_those_between() -> None:
    shades = torch.arange(9, dtype=torch.uint8) * 10
    video = shades[:, None, None, None].expand(9, 3, 32, 64)

    found = strip(video)

    assert found.shape == (3, STRIP_ROWS, FRAMES_SHOWN * 2 * STRIP_ROWS)
    assert found[0, 0, :: 2 * STRIP_ROWS].tolist() == [0, 20, 40, 60, 80]


@pytest.mark.parametrize("frames", [1, 2])
def test_a_short_video_gives_a_short_strip(frames: int) -> None:
    video = torch.zeros(frames, 3, 96, 96, dtype=torch.uint8)

    assert strip(video).shape[2] == frames * STRIP_ROWS


def test_a_sheet_has_a_row_for_each_strip_and_black_where_nothing_is() -> None:
    strips = [torch.full((3, 4, width), 255, dtype=torch.uint8) for width in (6, 2)]

    sheet = contact_sheet(strips)

    assert sheet.shape == (3, 4 + GAP + 4, 6)
    assert sheet[0, :, 0].tolist() == [255] * 4 + [0] * GAP + [255] * 4
    assert sheet[0, -1].tolist() == [255, 255, 0, 0, 0, 0]
