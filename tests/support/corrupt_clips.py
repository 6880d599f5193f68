"""Files that no decoder should be trusted with, made at test time, each with what must come of it.

Named by the kind of damage. `BAD` gives the reason that each is counted by, `GOOD` are odd but
valid files that must be decoded.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

from tests.support.clip_files import encode, run_ffmpeg

FRAMES = 24  # of the plain clip that most are made from; 3 s at 8 frames per second


def plain(folder: Path, *options: str) -> bytes:
    """24 numbered frames of 64x48, B-frames and two groups of pictures."""
    path = folder / f"plain{len(options)}.mp4"
    if not path.exists():
        encode(path, FRAMES, options=["-bf", "2", "-g", "12", *options])
    return path.read_bytes()


def faststart(folder: Path) -> bytes:
    """The same with its tables in front, so that a cut file still has them."""
    return plain(folder, "-movflags", "+faststart")


def made(folder: Path, name: str, arguments: str) -> bytes:
    """A file that ffmpeg makes; made once."""
    path = folder / name
    if not path.exists():
        run_ffmpeg([*arguments.split(), str(path)])
    return path.read_bytes()


def moving_picture(size: str, seconds: float, fps: int = 8) -> str:
    return f"-f lavfi -i testsrc2=s={size}:d={seconds}:r={fps}"


# bad ones


def cut(data: bytes, part: float) -> bytes:
    return data[: int(len(data) * part)]


def zeros_at_the_end(folder: Path) -> bytes:
    """As a download leaves it that reserved the space and was killed: the size is right."""
    data = faststart(folder)
    return data[: len(data) * 6 // 10] + bytes(len(data) - len(data) * 6 // 10)


def fragments_with_zeros_at_the_end(folder: Path) -> bytes:
    """The same damage to a film in parts, which has no table of all its frames."""
    data = plain(folder, "-movflags", "frag_keyframe+empty_moov", "-f", "mp4")
    second = data.rindex(b"moof") - 4
    return data[:second] + bytes(len(data) - second)


def garbled(folder: Path) -> bytes:
    data = plain(folder)
    middle = data.index(b"mdat") + (data.index(b"moov") - data.index(b"mdat")) * 2 // 3
    return data[:middle] + b"\xa5" * 400 + data[middle + 400 :]


def lying_sizes(folder: Path) -> bytes:
    """A table of frame sizes that claims four million frames."""
    data = bytearray(plain(folder))
    place = data.index(b"stsz") + 12
    data[place : place + 4] = struct.pack(">I", 4_000_000)
    return bytes(data)


def bomb_8192(folder: Path) -> bytes:
    """8192x8192 pixels in a few kilobytes."""
    return made(folder, "bomb.mp4", f"{black('8192x8192', 1)} -c:v libx264 -preset ultrafast")


def disguised_bomb(folder: Path) -> bytes:
    """The same with tables that promise 64x48."""
    data = bytearray(bomb_8192(folder))
    track = data.index(b"tkhd")
    (size,) = struct.unpack_from(">I", data, track - 4)
    struct.pack_into(">II", data, track - 4 + size - 8, 64 << 16, 48 << 16)
    entry = data.index(b"avc1", data.index(b"stsd")) + 4
    struct.pack_into(">HH", data, entry + 24, 64, 48)
    return bytes(data)


def black(size: str, frames: int) -> str:
    return f"-f lavfi -i color=c=black:s={size}:r=8 -frames:v {frames} -pix_fmt yuv420p"


def external_media(folder: Path, url: str) -> bytes:
    """An mp4 whose frames are said to lie at an address."""
    data = bytearray(plain(folder))
    place = data.index(b"url \x00\x00\x00\x01")
    address = url.encode() + b"\x00"
    entry = struct.pack(">I", 12 + len(address)) + b"url " + bytes(4) + address
    grown = len(entry) - 12
    # Every box around it grows; the tables come after the frames, so no frame moves.
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        at = data.rindex(kind, 0, place) - 4
        (size,) = struct.unpack_from(">I", data, at)
        struct.pack_into(">I", data, at, size + grown)
    data[place - 4 : place + 8] = entry
    return bytes(data)


def reference_movie(folder: Path, url: str) -> bytes:
    """QuickTime's way to say: the film is over there."""
    address = url.encode() + b"\x00"
    reference = box(b"rdrf", bytes(4) + b"url " + struct.pack(">I", len(address)) + address)
    movie = box(b"moov", box(b"rmra", box(b"rmda", reference)))
    return box(b"ftyp", b"qt  \x00\x00\x02\x00qt  ") + movie + box(b"free", bytes(2000))


def compressed_movie_box(folder: Path) -> bytes:
    """Tables in a zlib box that grow a thousandfold when they are opened."""
    import zlib

    packed = zlib.compress(bytes(32 << 20), 9)
    inner = box(b"dcom", b"zlib") + box(b"cmvd", struct.pack(">I", 32 << 20) + packed)
    return box(b"ftyp", b"qt  \x00\x00\x02\x00qt  ") + box(b"moov", box(b"cmov", inner))


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def playlist(url: str) -> bytes:
    entries = "".join(f"#EXTINF:2.0,\n{url}/part{i}.ts\n" for i in range(60))
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n{entries}#EXT-X-ENDLIST\n".encode()


def dash_manifest(url: str) -> bytes:
    text = (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'mediaPresentationDuration="PT3S"><Period><AdaptationSet mimeType="video/mp4">'
        f'<Representation id="1" bandwidth="1"><BaseURL>{url}/clip.mp4</BaseURL>'
        "</Representation></AdaptationSet></Period></MPD>"
    )
    return text.encode() + b"\n" * 1200


def concat_script(other: Path) -> bytes:
    return f"ffconcat version 1.0\nfile '{other}'\n".encode() + b"# \n" * 400


Make = Callable[[Path], bytes]

# name -> (how it is made, the reason that it must be counted by; `|` where the machine decides)
BAD: dict[str, tuple[Make, str]] = {
    "nothing": (lambda folder: b"", "not_a_video"),
    "text": (lambda folder: b"this is not a film\n" * 200, "not_a_video"),
    "noise": (lambda folder: bytes(range(256)) * 800, "not_a_video"),
    "only_the_magic": (lambda folder: b"\x00\x00\x00\x08ftyp" + bytes(3000), "truncated"),
    "cut_before_its_tables": (lambda folder: cut(plain(folder), 0.5), "truncated"),
    "cut_at_half": (lambda folder: cut(faststart(folder), 0.5), "truncated"),
    "cut_near_the_end": (lambda folder: cut(faststart(folder), 0.95), "truncated"),
    "cut_by_one_byte": (lambda folder: faststart(folder)[:-1], "truncated"),
    "zeros_at_the_end": (zeros_at_the_end, "damaged"),
    "fragments_with_zeros_at_the_end": (fragments_with_zeros_at_the_end, "truncated"),
    "fragments_cut": (
        lambda folder: cut(
            plain(folder, "-movflags", "frag_keyframe", "-f", "mp4", "-shortest"), 0.7
        ),
        "truncated",
    ),
    "garbled": (garbled, "damaged"),
    "lying_sizes": (lying_sizes, "too_long"),
    "only_sound": (
        lambda folder: made(folder, "sound.mp4", "-f lavfi -i sine=d=3 -c:a aac"),
        "no_video_track",
    ),
    "bomb_8192": (bomb_8192, "too_large"),
    "disguised_bomb": (disguised_bomb, "too_large|decoder_timeout"),
    "compressed_movie_box": (compressed_movie_box, "no_video_track"),
    "cinepak": (
        lambda folder: made(folder, "a.mov", f"{moving_picture('128x128', 0.5)} -c:v cinepak"),
        "unsupported_codec",
    ),
    "mkv_cut": (
        lambda folder: cut(made(folder, "a.mkv", f"{moving_picture('128x128', 3)}"), 0.6),
        "truncated",
    ),
    "avi_cut": (
        lambda folder: cut(made(folder, "a.avi", f"{moving_picture('128x128', 3)}"), 0.6),
        "truncated",
    ),
}
