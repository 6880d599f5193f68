from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from app.data.bad_clip import BadClipError
from app.data.video.mp4 import read_header
from tests.support.clip_files import encode, run_ffmpeg


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """20 frames of 64x48 with the index behind the pictures."""
    return encode(tmp_path_factory.mktemp("boxes") / "a.mp4").read_bytes()


@pytest.fixture(scope="module")
def faststart(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The same with the index in front."""
    folder = tmp_path_factory.mktemp("boxes")
    return encode(folder / "a.mp4", options=["-movflags", "+faststart"]).read_bytes()


def reason(data: bytes) -> str:
    with pytest.raises(BadClipError) as caught:
        read_header(data)
    return caught.value.reason


def patched(data: bytes, kind: bytes, offset: int, value: bytes) -> bytes:
    """The file with `value` written `offset` bytes behind the name of the first such box."""
    at = data.index(kind) + len(kind) + offset
    return data[:at] + value + data[at + len(value) :]


def test_a_good_file_is_described(video: bytes) -> None:
    header = read_header(video)

    assert (header.codec, header.rows, header.columns, header.samples) == ("avc1", 48, 64, 20)
    assert header.duration_s == pytest.approx(2.5, abs=0.01)


def test_a_fragmented_file_is_described(tmp_path: Path) -> None:
    options = ["-movflags", "+frag_keyframe+empty_moov", "-g", "5"]

    header = read_header(encode(tmp_path / "f.mp4", options=options).read_bytes())

    assert header.samples is None
    assert (header.rows, header.columns) == (48, 64)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 5000,
        b"hello " * 1000,
        b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:1/x.ts\n" * 50,
        b"ffconcat version 1.0\nfile '/etc/passwd'\n" * 50,
        b"\x89PNG\r\n\x1a\n" + b"\0" * 5000,
        b"\x1a\x45\xdf\xa3" + b"\0" * 5000,
    ],
    ids=["empty", "zeros", "text", "playlist", "concat", "png", "matroska"],
)
def test_what_is_no_mp4_never_reaches_a_decoder(data: bytes) -> None:
    assert reason(data) == "not_a_video"


@pytest.mark.parametrize("share", [0.5, 0.7, 0.95, 0.999])
def test_a_cut_file_is_truncated(video: bytes, faststart: bytes, share: float) -> None:
    for data in (video, faststart):
        assert reason(data[: int(len(data) * share)]) == "truncated"


def test_an_index_that_points_behind_the_end_is_truncated(faststart: bytes) -> None:
    offsets = patched(faststart, b"stco", 8, struct.pack(">I", len(faststart) + 5))

    assert reason(offsets) == "truncated"


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda d: patched(d, b"stsz", 8, struct.pack(">I", 4_000_000)), "too_long"),
        (lambda d: patched(d, b"stsz", 8, struct.pack(">I", 5_000)), "damaged"),
        (lambda d: patched(d, b"stsd", 40, struct.pack(">HH", 8192, 8192)), "too_large"),
        (lambda d: patched(d, b"stsd", 40, struct.pack(">HH", 200, 200)), "damaged"),
        (lambda d: patched(d, b"stsd", 40, struct.pack(">HH", 4, 4)), "damaged"),
        (lambda d: patched(d, b"mdhd", 12, struct.pack(">I", 0)), "damaged"),
        (lambda d: patched(d, b"mdhd", 16, struct.pack(">I", 2**32 - 1)), "too_long"),
        (lambda d: patched(d, b"url ", 0, b"\0\0\0\0"), "external_reference"),
        (lambda d: d.replace(b"avc1", b"vvc1"), "unsupported_codec"),
        (lambda d: d.replace(b"vide", b"soun"), "no_video_track"),
        (lambda d: d.replace(b"stbl", b"xxxx"), "damaged"),
        (lambda d: patched(d, b"stsc", 4, struct.pack(">I", 2**31)), "damaged"),
    ],
)
def test_tables_that_lie_are_found(
    video: bytes, damage: Callable[[bytes], bytes], expected: str
) -> None:
    assert reason(damage(video)) == expected


def test_a_file_with_sound_only_has_no_video_track(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    run_ffmpeg(["-f", "lavfi", "-i", "sine=duration=2", "-c:a", "aac", str(path)])

    assert reason(path.read_bytes()) == "no_video_track"


def test_every_single_cut_is_found_or_harmless(faststart: bytes) -> None:
    whole = read_header(faststart)

    for stop in range(1024, len(faststart), 7):
        try:
            header = read_header(faststart[:stop])
        except BadClipError:
            continue
        assert header == whole


def test_boxes_without_end_are_refused(video: bytes) -> None:
    ring = video[:32] + struct.pack(">I4s", 8, b"free") * 200_000

    assert reason(ring) == "damaged"
