"""Which container a video file is, by its content: names are often wrong.

A decoder is only ever given the format that is found here, so playlists, scripts and images never
reach one. Sources: ISO/IEC 14496-12 and Apple's QuickTime file format (boxes), RFC 8794 and
RFC 9559 (Matroska, WebM), Microsoft's AVI RIFF and OpenDML, ISO/IEC 13818-1 (program streams).
"""

from __future__ import annotations

import struct

from app.data.bad_clip import BadClipError

MOV, MATROSKA, AVI, MPEG = "mov", "matroska", "avi", "mpeg"
HEAD_BYTES = 64  # enough for `container_of`
# QuickTime files need not begin with `ftyp`.
FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
EBML_ID, SEGMENT_ID = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
PACK_START = b"\x00\x00\x01\xba"
KINDS = "mp4, mov, mkv, webm, avi or mpg"


def container_of(head: bytes) -> str:
    """The container of a file, by its first bytes.

    Raises:
        BadClipError: reason not_a_video; not a container that is read.
    """
    if head[4:8] in FIRST_BOXES:
        return MOV
    if head[:4] == EBML_ID:
        return MATROSKA
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return AVI
    if head[:4] == PACK_START:
        return MPEG
    raise BadClipError("not_a_video", f"its content is not that of {KINDS}")


def check_length(data: bytes, container: str) -> None:
    """Find a file that was cut, where the container says how long it is.

    MP4 has tables of every frame (`mp4.py`); MPEG program streams say nothing.

    Raises:
        BadClipError: reason truncated, or damaged.
    """
    if container == MATROSKA:
        _check_matroska(data)
    elif container == AVI:
        _check_avi(data)


def _check_matroska(data: bytes) -> None:
    stop = _element_end(data, len(EBML_ID))
    if stop is None or data[stop : stop + 4] != SEGMENT_ID:
        raise BadClipError("damaged", "its segment does not follow its header")
    end = _element_end(data, stop + 4)
    if end is not None and end > len(data):
        raise BadClipError("truncated", f"it should have {end} bytes and has {len(data)}")


def _element_end(data: bytes, start: int) -> int | None:
    """Where the element ends whose size begins at `start`; None for an unknown size (a stream)."""
    if start >= len(data) or data[start] == 0:
        raise BadClipError("damaged", "the size of an element cannot be read")
    length = 9 - data[start].bit_length()
    value = int.from_bytes(data[start : start + length], "big") & ((1 << 7 * length) - 1)
    is_unknown = value == (1 << 7 * length) - 1
    return None if is_unknown else start + length + value


def _check_avi(data: bytes) -> None:
    """Files above 1 GB are several RIFF chunks in a row."""
    start = 0
    while data[start : start + 4] == b"RIFF" and start + 8 <= len(data):
        (size,) = struct.unpack_from("<I", data, start + 4)
        if size == 0:
            raise BadClipError("truncated", "its recording was never finished")
        start += 8 + size
    if start > len(data):
        raise BadClipError("truncated", f"it should have {start} bytes and has {len(data)}")
