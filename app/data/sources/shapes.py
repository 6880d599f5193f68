"""The size that each sample is read at: one for all, or one per bucket."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from app.data.video.clip import ClipShape
from app.data.video.sizes import Sizes, sizes_from_json, sizes_to_json
from app.storage.objects import Storage


class ClipShapes:
    """Shapes of a source's samples; at first all alike.

    Args:
        shape: of every sample, until `use` says otherwise.
    """

    def __init__(self, shape: ClipShape) -> None:
        self.configured = shape
        self._shapes: Sequence[ClipShape] = [shape]
        self._of: np.ndarray | None = None

    def use(self, shapes: Sequence[ClipShape], of: np.ndarray) -> None:
        """From now on sample i has shape number of[i]; samples with -1 are not read."""
        self._shapes, self._of = list(shapes), of

    def at(self, index: int) -> ClipShape:
        """Shape of a sample."""
        return self._shapes[0 if self._of is None else int(self._of[index])]

    @property
    def bytes(self) -> int:
        """Memory of the largest sample."""
        return max(shape.bytes for shape in self._shapes)


class SideFiles(Protocol):
    """Where what was found in a dataset is kept (survey.IndexFiles)."""

    def read(self, key: str) -> bytes | None: ...

    def write(self, key: str, data: bytes) -> None: ...


def kept_sizes(
    files: SideFiles, key: str, fingerprint: str, count: int, scan: Callable[[], Sizes]
) -> Sizes:
    """Sizes of `count` videos from a side file, or those of a scan, which are then kept there."""
    known = sizes_from_json(files.read(key), fingerprint, count)
    if known is not None:
        return known
    found = scan()
    files.write(key, sizes_to_json(found, fingerprint))
    return found


def range_reader(storage: Storage, key: str, offset: int = 0) -> Callable[[int, int], bytes]:
    """Reads bytes [start, stop) of what begins at `offset` of an object."""

    def read(start: int, stop: int) -> bytes:
        return storage.read_range(key, offset + start, offset + stop)

    return read
