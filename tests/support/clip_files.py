"""Small video files whose frames can be told apart, for tests of the data path."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import imageio_ffmpeg
import numpy as np


def gray_of(number: int) -> int:
    """Gray level of frame `number`: four levels apart, so that coding noise never confuses two."""
    return 16 + 4 * (number % 55)


def number_of(frame: np.ndarray) -> int:
    """Which frame (modulo 55) an image is."""
    return round((float(np.asarray(frame).mean()) - 16) / 4)


def encode(
    path: Path,
    frames: int = 20,
    size: tuple[int, int] = (48, 64),
    fps: float = 8.0,
    options: Sequence[str] = (),
) -> Path:
    """Write `frames` plain gray frames of `size` (rows, columns) as H.264 in mp4."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, columns = size
    pixels = b"".join(
        np.full((rows, columns, 3), gray_of(number), dtype=np.uint8).tobytes()
        for number in range(frames)
    )
    source = f"-f rawvideo -pix_fmt rgb24 -s {columns}x{rows} -r {fps} -i -"
    target = "-c:v libx264 -preset ultrafast -crf 10 -pix_fmt yuv420p -color_range tv"
    run_ffmpeg([*source.split(), *target.split(), *options, str(path)], pixels)
    return path


def run_ffmpeg(arguments: Sequence[str], data: bytes = b"") -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", "-threads", "1", *arguments]
    subprocess.run(command, input=data, check=True, timeout=60)


def write_folder(
    root: Path, captions: dict[str, str | None], *, frames: int = 20, fps: float = 8.0
) -> Path:
    """videos/<name>.mp4 and labels/<name>.txt; None leaves the caption out."""
    for number, (name, caption) in enumerate(captions.items()):
        encode(root / "videos" / f"{name}.mp4", frames=frames + number, fps=fps)
        if caption is not None:
            label = root / "labels" / f"{name}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text(caption)
    return root
