from __future__ import annotations

from pathlib import Path

import pytest

from app.data.bad_clip import BadClipError
from app.data.video.containers import check_length, container_of
from tests.support.clip_files import run_ffmpeg


@pytest.mark.parametrize(
    ("suffix", "container"),
    [
        (".mp4", "mov"),
        (".mov", "mov"),
        (".mkv", "matroska"),
        (".webm", "matroska"),
        (".avi", "avi"),
        (".mpg", "mpeg"),
    ],
)
def test_content_says_what_a_file_is(tmp_path: Path, suffix: str, container: str) -> None:
    path = tmp_path / f"a{suffix}"
    run_ffmpeg(["-f", "lavfi", "-i", "testsrc2=s=64x64:d=2:r=25", "-an", str(path)])
    data = path.read_bytes()

    check_length(data, container)

    assert container_of(data[:64]) == container
    if container in ("matroska", "avi"):
        for kept in (len(data) - 1, len(data) * 2 // 3, 300):
            with pytest.raises(BadClipError) as caught:
                check_length(data[:kept], container)
            assert caught.value.reason in ("truncated", "damaged")


def test_quicktime_files_without_a_first_ftyp_are_films() -> None:
    assert container_of(b"\0\0\0\x08wide\0\0\0\x08mdat") == "mov"


def test_a_stream_of_unknown_length_is_read(tmp_path: Path) -> None:
    path = tmp_path / "live.webm"
    words = "-f lavfi -i testsrc2=s=64x64:d=1 -c:v libvpx -live 1"
    run_ffmpeg([*words.split(), str(path)])

    check_length(path.read_bytes(), "matroska")  # raises nothing

    assert container_of(path.read_bytes()[:64]) == "matroska"


@pytest.mark.parametrize(
    "head",
    [b"", b"#EXTM3U\n", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WAVE", b"OggS", b"GIF89a", bytes(64)],
)
def test_other_content_is_not_a_video(head: bytes) -> None:
    with pytest.raises(BadClipError) as caught:
        container_of(head)

    assert caught.value.reason == "not_a_video"


def test_a_recording_that_was_never_finished_is_truncated() -> None:
    with pytest.raises(BadClipError) as caught:
        check_length(b"RIFF\0\0\0\0AVI " + bytes(100), "avi")

    assert caught.value.reason == "truncated"
