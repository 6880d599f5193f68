"""A dataset with planted faults beside clips that are odd and fine."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

from tests.support.clip_files import encode, run_ffmpeg

LAVFI = "testsrc2=size=64x48:rate=8:duration=2.5"
Make = Callable[[Path], object]


def lavfi(path: Path, options: str, source: str = LAVFI) -> Path:
    """A clip of ffmpeg's moving test picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    run_ffmpeg(["-f", "lavfi", "-i", source, *options.split(), str(path)])
    return path


def cut(path: Path, share: float) -> None:
    """The first part of a file whose index lies at its front."""
    lavfi(path, "-c:v libx264 -pix_fmt yuv420p -movflags +faststart")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def garbled(path: Path) -> None:
    """Noise in the middle of the pictures, size and tables as they were."""
    lavfi(path, "-c:v libx264 -pix_fmt yuv420p -movflags +faststart")
    data = bytearray(path.read_bytes())
    start = len(data) // 2
    data[start : start + len(data) // 5] = random.Random(1).randbytes(len(data) // 5)
    path.write_bytes(data)


def zeroed_tail(path: Path) -> None:
    """What a copy leaves that made the file long before it filled it."""
    lavfi(path, "-c:v libx264 -pix_fmt yuv420p -movflags +faststart")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


def lying_size(path: Path) -> None:
    """An index that claims frames of 8192x8192 pixels."""
    encode(path)
    data = bytearray(path.read_bytes())
    place = data.index(b"avc1", data.index(b"stsd")) + 4 + 24
    data[place : place + 4] = struct.pack(">HH", 8192, 8192)
    path.write_bytes(data)


def rotated(path: Path) -> None:
    plain = encode(path.with_name("plain.mp4.tmp.mp4"))
    run_ffmpeg(["-display_rotation", "90", "-i", str(plain), "-c", "copy", str(path)])
    plain.unlink()


def with_edit_list(path: Path) -> None:
    whole = lavfi(path.with_name("whole.mp4.tmp.mp4"), "-c:v libx264 -g 48 -pix_fmt yuv420p")
    run_ffmpeg(["-ss", "0.6", "-i", str(whole), "-c", "copy", str(path)])
    whole.unlink()


def variable_rate(path: Path) -> None:
    options = "-c:v libx264 -pix_fmt yuv420p -fps_mode vfr -vf select='not(mod(n\\,3)*mod(n\\,5))'"
    lavfi(path, options, "testsrc2=size=64x48:rate=24:duration=3")


FINE: dict[str, Make] = {
    "plain": encode,
    "rotated": rotated,
    "edit-list": with_edit_list,
    "variable-rate": variable_rate,
    "static": lambda path: lavfi(path, "-c:v libx264", "color=c=red:size=64x48:rate=8:duration=3"),
    "hevc-10-bit": lambda path: lavfi(
        path, "-c:v libx265 -x265-params log-level=none -pix_fmt yuv420p10le -tag:v hvc1"
    ),
    "vp9": lambda path: lavfi(path, "-c:v libvpx-vp9 -deadline realtime -cpu-used 8"),
    "odd-444": lambda path: lavfi(
        path, "-c:v libx264 -pix_fmt yuv444p", "testsrc2=size=67x49:rate=8:duration=2"
    ),
    "fragmented": lambda path: lavfi(
        path, "-c:v libx264 -pix_fmt yuv420p -movflags frag_keyframe+empty_moov"
    ),
    "with-sound": lambda path: lavfi(
        path, "-f lavfi -i sine=d=2.5 -c:v libx264 -pix_fmt yuv420p -c:a aac -shortest"
    ),
}
FAULTS: dict[str, tuple[Make, str]] = {
    "cut-in-half": (lambda path: cut(path, 0.5), "truncated"),
    "cut-near-end": (lambda path: cut(path, 0.97), "truncated"),
    "without-index": (
        lambda path: path.write_bytes(encode(path).read_bytes()[:900] * 2),
        "truncated",
    ),
    "zero-bytes": (lambda path: path.write_bytes(b""), "not_a_video"),
    "text": (lambda path: path.write_text("no video at all\n" * 99), "not_a_video"),
    "playlist": (
        lambda path: path.write_text("#EXTM3U\n" + "#EXTINF:9,\nhttp://127.0.0.1:9/x.ts\n" * 99),
        "not_a_video",
    ),
    "script": (
        lambda path: path.write_text("ffconcat version 1.0\n" + "file plain.mp4\n" * 99),
        "not_a_video",
    ),
    "audio-only": (
        lambda path: lavfi(path, "-c:a aac", "sine=duration=3"),
        "no_video_track",
    ),
    "one-frame": (lambda path: encode(path, frames=1, options=["-crf", "0"]), "too_short"),
    "garbled": (garbled, "undecodable"),
    "zeroed-tail": (zeroed_tail, "damaged"),
    "bomb": (lying_size, "too_large"),
    "cinepak": (
        lambda path: lavfi(path, "-c:v cinepak -f mov"),
        "unsupported_codec",
    ),
}
CAPTION_FAULTS: dict[str, tuple[bytes | None, str]] = {
    "no-words": (None, "no_caption"),
    "blank-words": (b" \n", "empty_caption"),
    "latin-words": (b"caf\xe9 au lait", "bad_caption"),
    "endless-words": (b"a red ball rolls " * 80, "caption_too_long"),
}


def planted_folder(root: Path) -> dict[str, str]:
    """Write videos/ and labels/; returns the reason of each fault by the video's name."""
    (root / "videos").mkdir(parents=True)
    (root / "labels").mkdir()
    makers = FINE | {name: make for name, (make, _) in FAULTS.items()}
    for name, make in makers.items():
        make(root / "videos" / f"{name}.mp4")
        (root / "labels" / f"{name}.txt").write_text(f"a clip called {name}")
    plain = (root / "videos" / "plain.mp4").read_bytes()
    for name, (words, _) in CAPTION_FAULTS.items():
        (root / "videos" / f"{name}.mp4").write_bytes(plain)
        if words is not None:
            (root / "labels" / f"{name}.txt").write_bytes(words)
    reasons = {name: reason for name, (_, reason) in FAULTS.items()}
    return reasons | {name: reason for name, (_, reason) in CAPTION_FAULTS.items()}
