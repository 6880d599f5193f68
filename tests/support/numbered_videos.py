"""Videos with their number drawn into each frame, over codecs, groups of pictures and containers.

What is right comes from ffmpeg's own decode (`shown_by_ffmpeg`), never from the code under test.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from tests.support.clip_files import run_ffmpeg

FRAMES, ROWS, COLUMNS = 49, 96, 160
BITS = 8
X264 = "-c:v libx264 -preset veryfast -pix_fmt yuv420p"
X265 = "-c:v libx265 -preset ultrafast -pix_fmt yuv420p -x265-params log-level=none:pools=1"
X265_OPEN = f"{X265}:keyint=12:min-keyint=12:open-gop=1:bframes=4"
CUT = "-ss 0.8 -i SOURCE -c copy"


@dataclass(frozen=True, slots=True)
class Recipe:
    """How ffmpeg makes a clip: suffix, encoder's words, and words that copy it once more."""

    suffix: str
    encoder: str
    copy: str = ""
    fps: str = "24"


VFR = "-vf select='not(mod(n\\,3)-1)+not(mod(n\\,7))' -fps_mode vfr"
RECIPES: dict[str, Recipe] = {
    "h264_closed": Recipe(".mp4", f"{X264} -g 12"),
    "h264_b_frames": Recipe(".mp4", f"{X264} -bf 3 -g 250"),
    "h264_open": Recipe(".mp4", f"{X264} -x264-params open-gop=1:keyint=12:bframes=3"),
    "h264_pyramid": Recipe(".mp4", f"{X264} -x264-params b-pyramid=normal:bframes=8:keyint=20"),
    "h264_intra_refresh": Recipe(".mp4", f"{X264} -x264-params intra-refresh=1:keyint=12"),
    "h264_10_bit": Recipe(".mp4", "-c:v libx264 -preset veryfast -pix_fmt yuv420p10le"),
    "h264_444": Recipe(".mp4", "-c:v libx264 -preset veryfast -pix_fmt yuv444p"),
    "h264_full_range": Recipe(".mp4", "-c:v libx264 -preset veryfast -pix_fmt yuvj420p"),
    "h264_interlaced": Recipe(".mp4", f"{X264} -x264-params interlaced=1:tff=1"),
    "h264_fragments": Recipe(".mp4", f"{X264} -g 12 -movflags frag_keyframe+empty_moov"),
    "h264_mkv": Recipe(".mkv", f"{X264} -g 12"),
    "h264_mov": Recipe(".mov", f"{X264} -g 12"),
    "h264_m4v": Recipe(".m4v", f"{X264} -g 12 -f mp4"),
    "h264_avi": Recipe(".avi", f"{X264} -g 12 -bf 2"),
    "h264_23.976": Recipe(".mp4", f"{X264} -g 12", fps="24000/1001"),
    "h264_120": Recipe(".mp4", f"{X264} -g 12", fps="120"),
    "h264_uneven": Recipe(".mp4", f"{X264} -g 6 {VFR}"),
    "h264_uneven_mkv": Recipe(".mkv", f"{X264} -g 6 {VFR}"),
    "h264_edit_list": Recipe(".mp4", f"{X264} -g 12 -bf 3", CUT),
    "h264_offset": Recipe(".mp4", f"{X264} -g 12 -bf 3", "-itsoffset 0.7 -i SOURCE -c copy"),
    "h264_negative": Recipe(".mp4", f"{X264} -g 12 -bf 3 -movflags negative_cts_offsets"),
    "h264_cut_mkv": Recipe(".mkv", f"{X264} -g 12 -bf 3", CUT),
    "hevc_plain": Recipe(".mp4", X265),
    "hevc_open": Recipe(".mp4", f"{X265_OPEN} -tag:v hvc1"),
    "hevc_10_bit": Recipe(".mp4", X265_OPEN.replace("yuv420p", "yuv420p10le")),
    "hevc_edit_list": Recipe(".mp4", X265_OPEN, CUT),
    "hevc_mkv": Recipe(".mkv", X265_OPEN),
    "mpeg4": Recipe(".mp4", "-c:v mpeg4 -q:v 3 -g 12 -bf 2 -pix_fmt yuv420p"),
    "mpeg4_avi": Recipe(".avi", "-c:v mpeg4 -q:v 3 -g 12 -bf 2 -pix_fmt yuv420p"),
    "xvid": Recipe(".mp4", "-c:v libxvid -q:v 3 -g 12 -bf 2 -pix_fmt yuv420p"),
    "xvid_packed": Recipe(".avi", "-c:v libxvid -q:v 3 -g 12 -bf 2 -pix_fmt yuv420p"),
    "vp8_hidden": Recipe(".webm", "-c:v libvpx -b:v 1M -auto-alt-ref 1 -lag-in-frames 16 -g 20"),
    "vp9_hidden": Recipe(".webm", "-c:v libvpx-vp9 -b:v 1M -cpu-used 5 -lag-in-frames 16 -g 20"),
    "vp9_mp4": Recipe(".mp4", "-c:v libvpx-vp9 -b:v 1M -cpu-used 5 -lag-in-frames 16 -g 20"),
    "av1_mp4": Recipe(".mp4", "-c:v libaom-av1 -cpu-used 8 -usage realtime -g 20"),
    "av1_hidden_mkv": Recipe(".mkv", "-c:v libaom-av1 -cpu-used 8 -lag-in-frames 19 -g 20"),
    "mjpeg_avi": Recipe(".avi", "-c:v mjpeg -q:v 3 -pix_fmt yuvj420p"),
    "mjpeg_mov": Recipe(".mov", "-c:v mjpeg -q:v 3 -pix_fmt yuvj420p"),
    "prores": Recipe(".mov", "-c:v prores_ks -profile:v 2 -pix_fmt yuv422p10le"),
    "mpeg2_mpg": Recipe(".mpg", "-c:v mpeg2video -q:v 3 -g 12 -bf 2 -pix_fmt yuv420p"),
    "mpeg1_mpg": Recipe(".mpg", "-c:v mpeg1video -q:v 3 -g 12 -bf 2 -pix_fmt yuv420p"),
    "second_track": Recipe(
        ".mp4",
        f"-map 0:v -map 0:v {X264} -g 12 -filter:v:0 negate -disposition:v:0 0 "
        "-disposition:v:1 default",
    ),
}
TURNS = {
    f"turned_{degrees}{'_mirrored' * mirrored}": Recipe(
        ".mp4",
        f"{X264} -g 12",
        f"-display_rotation {degrees} {'-display_hflip ' * mirrored}-i SOURCE -c copy",
    )
    for degrees in (0, 90, 180, 270)
    for mirrored in (False, True)
}


def image(number: int) -> np.ndarray:
    """(96, 160, 3) uint8: bit k is bar k below the middle; three coloured corners; a texture."""
    blocks = np.random.default_rng(7).integers(60, 190, (ROWS // 8 + 2, COLUMNS // 8 + 2, 3))
    texture = blocks.repeat(8, 0).repeat(8, 1)
    drawn: np.ndarray = texture[number % 8 :, number % 8 :][:ROWS, :COLUMNS].astype(np.uint8)
    drawn[:16, :20], drawn[:16, -20:], drawn[-16:, :20] = (
        (220, 30, 30),
        (30, 200, 30),
        (30, 30, 220),
    )
    width = COLUMNS // BITS
    for bit in range(BITS):
        bar = np.s_[ROWS // 2 : ROWS * 3 // 4, bit * width : (bit + 1) * width]
        drawn[bar] = 235 if number >> bit & 1 else 20
    return drawn


def drawn_number(frame: np.ndarray) -> int:
    """The number in a (96, 160, 3) frame that is upright."""
    width, row = COLUMNS // BITS, ROWS * 5 // 8
    bars = [frame[row - 2 : row + 2, bit * width + 6 : bit * width + 14] for bit in range(BITS)]
    return sum(1 << bit for bit, bar in enumerate(bars) if bar.mean() > 128)


@lru_cache(maxsize=1)
def _raw() -> bytes:
    return b"".join(image(number).tobytes() for number in range(FRAMES))


def make(folder: Path, name: str) -> Path:
    """The clip of a recipe; made once."""
    recipe = {**RECIPES, **TURNS}[name]
    path = folder / f"{name}{recipe.suffix}"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    first = folder / f"{name}.source{recipe.suffix}" if recipe.copy else path
    source = f"-f rawvideo -pix_fmt rgb24 -s {COLUMNS}x{ROWS} -r {recipe.fps} -i -"
    run_ffmpeg([*source.split(), *recipe.encoder.split(), str(first)], _raw())
    if recipe.copy:
        run_ffmpeg([*recipe.copy.replace("SOURCE", str(first)).split(), str(path)])
        first.unlink()
    return path


def shown_by_ffmpeg(path: Path) -> np.ndarray:
    """(frames, rows, columns, 3) uint8: every frame as ffmpeg decodes and turns it."""
    words = "-v info -nostdin -i PATH -an -fps_mode passthrough -vf showinfo -f rawvideo -pix_fmt"
    command: Sequence[str] = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        *(str(path) if word == "PATH" else word for word in words.split()),
        *("rgb24", "-"),
    ]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    columns, rows = re.findall(r" s:(\d+)x(\d+) ", done.stderr.decode(errors="replace"))[-1]
    return np.frombuffer(done.stdout, np.uint8).reshape(-1, int(rows), int(columns), 3)
