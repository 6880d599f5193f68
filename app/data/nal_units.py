"""Whether coded frames are made of units, as H.264 and H.265 in mp4 have them.

A frame is a run of units, each behind its length (ISO/IEC 14496-15). A file whose end was never
written (zeros in the place of frames) or whose middle was overwritten has sound tables, and some
decoders repeat the last good frame in its place without an error; its units do not add up.
"""

from __future__ import annotations

import numpy as np

from app.data.bad_clip import BadClipError

# Units of one frame on average, at most: a crafted file of tiny units must not cost minutes.
MOST_UNITS_PER_FRAME = 512


def check_units(data: bytes, starts: np.ndarray, sizes: np.ndarray, length_bytes: int) -> None:
    """Walk over the units of every frame.

    Args:
        data: the whole file.
        starts: (frames,) int64 position of each frame, in [0, len(data)].
        sizes: (frames,) int64 its bytes; no frame ends behind the file.
        length_bytes: of a unit's length, 1 to 4.

    Raises:
        BadClipError: reason damaged; names the first such frame.
    """
    units_left = MOST_UNITS_PER_FRAME * len(sizes)
    damaged = 0
    first: int | None = None
    for number, (start, size) in enumerate(zip(starts.tolist(), sizes.tolist(), strict=True)):
        place, stop = start, start + size
        while place < stop:
            units_left -= 1
            head = place + length_bytes
            length = int.from_bytes(data[place:head], "big")
            if length == 0 or head + length > stop or units_left < 0:
                damaged += 1
                first = number if first is None else first
                break
            place = head + length
        if units_left < 0:
            break
    if first is not None:
        raise BadClipError(
            "damaged", f"the data of {damaged} of {len(sizes)} frames is garbled, first {first}"
        )
