"""Shapes of samples, and the sizes that are scanned once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from app.data.shards.index_files import IndexFiles
from app.data.sources.video_source import ClipShapes, kept_sizes
from app.data.video.clip import ClipShape
from app.data.video.frames import FrameRequest
from app.data.video.sizes import ClipSize, Sizes
from app.storage.local import LocalStorage

SIZES = [ClipSize(480, 720, 100, 30.0), None]


def shape(frames: int, rows: int, columns: int) -> ClipShape:
    return ClipShape(FrameRequest(frames, 8.0, 0), rows, columns)


def test_samples_have_the_configured_shape_until_they_are_given_others() -> None:
    configured, small, large = shape(9, 32, 48), shape(5, 16, 16), shape(17, 64, 64)
    shapes = ClipShapes(configured, list)
    assert [shapes.at(0), shapes.at(999)] == [configured, configured]
    assert shapes.bytes == 9 * 3 * 32 * 48

    shapes.use([small, large], np.array([1, 0, 1]))

    assert [shapes.at(index) for index in range(3)] == [large, small, large]
    assert shapes.bytes == 17 * 3 * 64 * 64
    assert shapes.configured == configured


@pytest.fixture
def files(tmp_path: Path) -> IndexFiles:
    (tmp_path / "data").mkdir()
    return IndexFiles(LocalStorage(tmp_path / "data"), tmp_path / "node")


class Scan:
    """A scan that counts how often it runs."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self) -> Sizes:
        self.runs += 1
        return SIZES


def test_sizes_are_scanned_once_and_then_read_from_their_file(files: IndexFiles) -> None:
    scan = Scan()

    found = [kept_sizes(files, "a.sizes.json", "data 1", 2, scan) for _ in range(3)]

    assert found == [SIZES] * 3
    assert scan.runs == 1


@pytest.mark.parametrize(("fingerprint", "count"), [("data 2", 2), ("data 1", 3)])
def test_sizes_of_other_data_are_scanned_again(
    files: IndexFiles, fingerprint: str, count: int
) -> None:
    scan = Scan()
    kept_sizes(files, "a.sizes.json", "data 1", 2, scan)

    kept_sizes(files, "a.sizes.json", fingerprint, count, scan)

    assert scan.runs == 2
