"""Decoders as tests use them: chosen frames, reasons of refusal, ids of the worker processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import psutil
import pytest

from app.data.bad_clip import BadClipError
from app.data.video.decoder import VideoDecoder


def frames_of(decoder: VideoDecoder, blob: bytes, numbers: Sequence[int]) -> dict[int, np.ndarray]:
    """The frames with these numbers, by their place among them."""
    taken: dict[int, np.ndarray] = {}
    decoder.decode(blob, lambda facts: numbers, keep(taken))
    return taken


def keep(taken: dict[int, np.ndarray]) -> Callable[[int, np.ndarray], None]:
    """Takes frames into a dict; a frame is valid during the call only."""

    def take(place: int, frame: np.ndarray) -> None:
        taken[place] = frame.copy()

    return take


def reason_of(decoder: VideoDecoder, blob: bytes) -> str:
    """Why a file is refused when all of its frames are decoded."""
    with pytest.raises(BadClipError) as caught:
        decoder.decode(blob, lambda facts: range(facts.frames), lambda place, frame: None)
    return caught.value.reason


def worker_pids(parent: int | None = None) -> set[int]:
    """Decoder processes of a process, by default of this one."""
    children = psutil.Process(parent).children()
    return {child.pid for child in children if "app.data.video.worker" in child.cmdline()}


class Workers:
    """The decoder processes that were started since this was made."""

    def __init__(self) -> None:
        self._before = worker_pids()

    @property
    def pid(self) -> int:
        """That of the only one."""
        (pid,) = worker_pids() - self._before
        return pid
