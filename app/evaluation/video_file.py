"""Write a video file: H.264 in mp4, for validation samples and `cogvx sample`; read an image.

Frames go as raw RGB through a pipe to the ffmpeg binary that imageio-ffmpeg ships, so no system
package is needed. The file appears under its name only when it is complete.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

import imageio_ffmpeg
import torch
from torch import Tensor

from app.errors import CogvxError, DataError, InputMissingError, ShapeError

# Constant quality of x264, 0 to 51: 17 to 18 is called visually lossless.
QUALITY_CRF = 18
# More or fewer threads give other bytes; fixed, so that one video is one file on any machine.
ENCODER_THREADS = 2
STDERR_TAIL_CHARACTERS = 600
FOLDER_FIX = "check that the folder is writable and has space"


def to_uint8(video: Tensor) -> Tensor:
    """(..., 3, H, W) floats in [0, 1] as uint8: clamped, times 255, fraction cut off.

    Cut off and not rounded, as upstream does: a mid grey of 0.5 becomes 127. NaN becomes black.
    """
    return (video.float().nan_to_num(nan=0.0).clamp(0, 1) * 255).to(torch.uint8)


def write_video(path: Path, frames: Tensor, fps: float, *, timeout_s: float = 300.0) -> Path:
    """Encode frames as an mp4 of exactly their size (yuv420p, even sides).

    Args:
        path: ends in .mp4; its folder is made; an existing file is replaced.
        frames: (T, 3, H, W) uint8 RGB, H and W even.
        fps: frames per second, above 0.
        timeout_s: deadline for the encoder, which is killed when it passes.

    Returns:
        `path`.

    Raises:
        ShapeError: not (T, 3, H, W) uint8, no frame, or an odd side.
        CogvxError: the encoder failed, could not start or passed the deadline.
    """
    assert fps > 0, f"fps is {fps}"
    _check(frames, path)
    _, _, rows, columns = frames.shape
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    raw = frames.permute(0, 2, 3, 1).contiguous().cpu().numpy().tobytes()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _run_encoder(_arguments(rows, columns, fps, unfinished), raw, path, timeout_s)
        os.replace(unfinished, path)
    except OSError as error:
        raise CogvxError(
            f"the video cannot be written: {error}", where=str(path), fix=FOLDER_FIX
        ) from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
    return path


def _check(frames: Tensor, path: Path) -> None:
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] != 3 or not len(frames):
        raise ShapeError(
            f"frames are {tuple(frames.shape)} of {frames.dtype}, not (T, 3, H, W) of uint8",
            where=str(path),
            fix="convert with to_uint8 and give at least one frame",
        )
    for side, size in (("H", frames.shape[2]), ("W", frames.shape[3])):
        if size % 2:
            raise ShapeError(
                f"{side} is {size} pixels; yuv420p stores colour for pairs of pixels",
                where=str(path),
                fix=f"use an even size such as {size + 1}",
            )


def _arguments(rows: int, columns: int, fps: float, output: Path) -> list[str]:
    """Arguments of ffmpeg: raw RGB on standard input, mp4 out."""
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{columns}x{rows}", "-r", f"{fps:g}"]
    # The image is converted with the matrix that it is tagged with: an untagged file is shown
    # with shifted colours from 720 rows on, where players guess another one.
    image = ["-vf", "scale=out_color_matrix=bt601:out_range=tv", "-pix_fmt", "yuv420p"]
    tags = ["-colorspace", "smpte170m", "-color_primaries", "smpte170m", "-color_trc", "smpte170m"]
    codec = ["-c:v", "libx264", "-crf", str(QUALITY_CRF), "-threads", str(ENCODER_THREADS)]
    # bitexact: no encoder version or date in the file.
    container = ["-fflags", "+bitexact", "-movflags", "+faststart", "-f", "mp4", str(output)]
    quiet = ["-hide_banner", "-loglevel", "error", "-nostdin", "-y"]
    return [*quiet, *raw, "-i", "-", "-an", *image, *tags, *codec, *container]


def read_image(path: Path, *, timeout_s: float = 60.0) -> Tensor:
    """The pixels of an image file (png, jpg, webp, ...), of its first image if it has several.

    Transparency is dropped.

    Returns:
        (3, H, W) uint8 RGB.

    Raises:
        InputMissingError: there is no such file.
        DataError: ffmpeg cannot read it.
    """
    if not path.is_file():
        raise InputMissingError("there is no such image", where=str(path), fix="check the path")
    # A local file and nothing else: a playlist or script in disguise must not fetch anything.
    source = ["-protocol_whitelist", "file,pipe", "-i", f"file:{path}"]
    ppm = ["-frames:v", "1", "-f", "image2pipe", "-pix_fmt", "rgb24", "-c:v", "ppm", "-"]
    try:
        done = subprocess.run(
            [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-nostdin", *source, *ppm],
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
        return _pixels_of_ppm(done.stdout)
    except (OSError, RuntimeError, ValueError, subprocess.TimeoutExpired) as error:
        raise DataError(
            f"this is not an image that can be read ({type(error).__name__})",
            where=str(path),
            fix="give a png or jpg file",
        ) from error


def _pixels_of_ppm(data: bytes) -> Tensor:
    """(3, H, W) uint8 of a binary PPM; ValueError for anything else."""
    magic, size, depth, pixels = data.split(b"\n", 3)
    columns, rows = (int(word) for word in size.split())
    if magic != b"P6" or depth != b"255" or len(pixels) != 3 * rows * columns:
        raise ValueError("not a whole PPM of 8 bits")
    flat = torch.frombuffer(bytearray(pixels), dtype=torch.uint8)
    return flat.view(rows, columns, 3).permute(2, 0, 1).contiguous()


def _run_encoder(arguments: list[str], raw: bytes, path: Path, timeout_s: float) -> None:
    executable = "imageio_ffmpeg.get_ffmpeg_exe()"
    try:
        executable = imageio_ffmpeg.get_ffmpeg_exe()
        done = subprocess.run(
            [executable, *arguments],
            input=raw,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CogvxError(
            f"the video encoder did not finish in {timeout_s:g} s",
            where=str(path),
            fix="give it more time or look for a disk that hangs",
        ) from error
    except (OSError, RuntimeError) as error:
        raise CogvxError(
            f"the video encoder did not start: {error}",
            where=executable,
            fix="set IMAGEIO_FFMPEG_EXE to an ffmpeg that runs on this machine",
        ) from error
    if done.returncode:
        tail = done.stderr.decode(errors="replace")[-STDERR_TAIL_CHARACTERS:].strip()
        raise CogvxError(
            f"the video encoder failed with exit code {done.returncode}: {tail}",
            where=str(path),
            fix=FOLDER_FIX,
        )
