"""The image of image-to-video: sizes by the rules of both generations, pixels as Pillow's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app.errors import DataError, InputMissingError
from app.evaluation.condition_image import covered, resized, size_by_ratio
from app.evaluation.contact_sheet import png
from app.evaluation.video_file import read_image


def picture(rows: int, columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows)
    return torch.randint(0, 256, (3, rows, columns), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1080, 1920), (768, 1360)),  # 1365.3 lies between 1360 and 1376
        ((1920, 1080), (1360, 768)),
        ((768, 768), (768, 768)),
        ((768, 776), (768, 784)),  # as near to 768 as to 784
        ((96, 97), (768, 784)),  # 776 exactly, a tie as well
        ((100, 300), (768, 2304)),
    ],
)
def test_the_long_side_is_the_nearest_multiple_and_ties_go_up(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert size_by_ratio(size, 768, 16) == expected


@pytest.mark.parametrize("size", [(16, 32), (64, 40), (30, 50), (61, 97)])
def test_resizing_is_pillows(size: tuple[int, int]) -> None:
    source = picture(40, 60)
    image = Image.fromarray(source.permute(1, 2, 0).numpy())
    expected = np.asarray(image.resize((size[1], size[0]), Image.Resampling.LANCZOS))

    found = resized(source, size).permute(1, 2, 0).numpy()

    # Pillow's weights have 22 bits: a value beside a half may fall to the other side.
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1
    assert (found != expected).mean() < 0.01


def test_covering_keeps_the_centre() -> None:
    source = torch.zeros(3, 8, 32, dtype=torch.uint8)
    source[:, :, 12:20] = 200

    assert covered(source, (8, 8)).eq(200).all()


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff"])
def test_a_picture_is_read_exactly(tmp_path: Path, suffix: str) -> None:
    source = picture(5, 7)
    path = tmp_path / f"a picture.{suffix}"
    Image.fromarray(source.permute(1, 2, 0).numpy()).save(path)

    assert torch.equal(read_image(path), source)


def test_transparency_and_grey_become_colours(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 2), (10, 20, 30, 128)).save(tmp_path / "a.png")
    Image.new("L", (4, 2), 77).save(tmp_path / "g.png")

    assert read_image(tmp_path / "a.png")[:, 0, 0].tolist() == [10, 20, 30]
    assert read_image(tmp_path / "g.png")[:, 1, 3].tolist() == [77, 77, 77]


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    text = tmp_path / "a.png"
    text.write_text("no picture")
    cut = tmp_path / "cut.png"
    cut.write_bytes(png(picture(9, 9))[:40])

    for path in (text, cut):
        with pytest.raises(DataError) as caught:
            read_image(path)
        assert caught.value.where == str(path)
    with pytest.raises(InputMissingError):
        read_image(tmp_path / "none.png")
