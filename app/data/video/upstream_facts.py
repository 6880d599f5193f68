"""Length and frame rate of a video as upstream's decoder reports them. The door to decord.

Upstream chooses frames by `len(VideoReader)` and `get_avg_fps()`, so `frame_rule: sat` asks the
same library. It does not decode: after a seek it counts frames wrongly in many files.
"""

from __future__ import annotations

import io


def upstream_facts(blob: bytes) -> tuple[int, float] | None:
    """(frames, frames per second) of an mp4 file; None where upstream cannot read it."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(io.BytesIO(blob), ctx=decord.cpu(0), num_threads=1)
        return len(reader), float(reader.get_avg_fps())
    except (decord.DECORDError, RuntimeError):
        return None
