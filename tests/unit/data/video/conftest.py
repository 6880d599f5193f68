from __future__ import annotations

from collections.abc import Iterator

import pytest

from app.data.video.decoder import VideoDecoder


@pytest.fixture(scope="module")
def decoder() -> Iterator[VideoDecoder]:
    """One decoder for a module: what a file does to it must not harm the next one."""
    shared = VideoDecoder()
    yield shared
    shared.close()
