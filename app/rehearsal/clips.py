"""Short H.264 clips with captions: coloured shapes that move over textured backgrounds.

The caption states shape, colour, direction and background, so a small model has something to
learn from it. Everything is decided by the seed. ffmpeg runs as a child process; no torch here.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from app.errors import ConfigError, DataError

COLOURS = {  # name: red, green, blue
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 230),
    "yellow": (235, 215, 50),
    "purple": (150, 60, 190),
    "white": (240, 240, 240),
}
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # rows, columns
SHAPES = ("circle", "square", "triangle", "diamond")
BACKGROUNDS = ("cloudy", "striped", "checkered", "grainy")

ENCODE_TIMEOUT_S = 60  # a clip takes a tenth of a second
NUM_THREADS = 2
MARGIN = 0.2  # the path of the shape's centre starts and ends this far from the borders


@dataclass(frozen=True, slots=True)
class Scene:
    """What a clip shows."""

    shape: str
    colour: str
    direction: str
    background: str

    @property
    def caption(self) -> str:
        """One sentence with every fact of the scene."""
        return (
            f"a {self.colour} {self.shape} moves {self.direction} "
            f"over a {self.background} background"
        )


@dataclass(frozen=True, slots=True)
class MadeClip:
    """One clip on disk."""

    video: Path
    caption: str


def all_captions() -> list[str]:
    """The captions of all scenes; text for a tokenizer."""
    scenes = product(SHAPES, COLOURS, DIRECTIONS, BACKGROUNDS)
    return [Scene(*facts).caption for facts in scenes]


def make_clips(
    folder: Path,
    count: int,
    size: tuple[int, int] = (64, 96),
    fps: int = 8,
    seconds: float = 3.0,
    seed: int = 0,
) -> list[MadeClip]:
    """Write `folder`/videos/NNN.mp4 and `folder`/labels/NNN.txt.

    Args:
        folder: created if missing; files of the same names are replaced.
        count: clips; no scene is repeated among the first 96.
        size: rows, columns, in pixels, both even (4:2:0 colour).
        fps: frames per second.
        seconds: length of a clip.
        seed: decides scenes, textures and paths.

    Raises:
        ConfigError: an odd size, or no frames.
        DataError: ffmpeg failed or did not end in time.
    """
    num_frames = round(fps * seconds)
    if size[0] % 2 or size[1] % 2 or min(size) < 16 or num_frames < 1:
        raise ConfigError(
            f"cannot make clips of {size[0]} x {size[1]} pixels with {num_frames} frames",
            where="make_clips(size, fps, seconds)",
            fix="use even numbers of pixels, at least 16, and at least one frame",
        )
    for name in ("videos", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    scenes = _choose_scenes(count, np.random.default_rng(seed))

    def make(index: int) -> MadeClip:
        frames = draw_scene(scenes[index], size, num_frames, np.random.default_rng([seed, index]))
        video = folder / "videos" / f"{index:03d}.mp4"
        _encode(frames, fps, video)
        label = folder / "labels" / f"{index:03d}.txt"
        label.write_text(scenes[index].caption + "\n", encoding="utf-8")
        return MadeClip(video, scenes[index].caption)

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        return list(pool.map(make, range(count)))


def _choose_scenes(count: int, rng: np.random.Generator) -> list[Scene]:
    """`count` scenes: all combinations of shape, colour and direction in a random order, again
    and again, each with a random background."""
    facts = list(product(SHAPES, COLOURS, DIRECTIONS))

    def endless() -> Iterator[tuple[str, str, str]]:
        while True:
            yield from (facts[i] for i in rng.permutation(len(facts)))

    return [
        Scene(*chosen, BACKGROUNDS[rng.integers(len(BACKGROUNDS))])
        for chosen, _ in zip(endless(), range(count), strict=False)
    ]


def draw_scene(
    scene: Scene, size: tuple[int, int], num_frames: int, rng: np.random.Generator
) -> np.ndarray:
    """Paint a scene.

    Args:
        scene: what to show.
        size: H rows, W columns, in pixels.
        num_frames: T.
        rng: decides texture, size of the shape and its path.

    Returns:
        (T, H, W, 3) uint8.
    """
    H, W = size
    backdrop = _texture(scene.background, size, rng)
    radius = min(size) * rng.uniform(0.14, 0.22)
    rows, columns = np.mgrid[0:H, 0:W].astype(np.float32)
    along = np.linspace(MARGIN, 1 - MARGIN, num_frames)  # 0..1 in the direction of movement
    across = rng.uniform(0.35, 0.65)
    step_rows, step_columns = DIRECTIONS[scene.direction]
    frames = np.empty((num_frames, H, W, 3), np.uint8)
    for frame, place in zip(frames, along, strict=True):
        y = H * (across if step_rows == 0 else place if step_rows > 0 else 1 - place)
        x = W * (across if step_columns == 0 else place if step_columns > 0 else 1 - place)
        cover = OUTLINES[scene.shape]((rows - y) / radius, (columns - x) / radius)
        # A soft border of about one pixel, so that movement below a pixel shows.
        alpha = np.clip(cover * radius + 0.5, 0, 1)[..., None]
        colour = np.array(COLOURS[scene.colour], np.float32)
        frame[:] = np.rint(backdrop * (1 - alpha) + colour * alpha)
    return frames


# How far inside the outline a point is, in radii; y down, x right, both in radii from the centre.
OUTLINES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": lambda y, x: 1 - np.hypot(y, x),
    "square": lambda y, x: 0.85 - np.maximum(abs(y), abs(x)),
    "triangle": lambda y, x: np.minimum(0.8 - y, (y + 1 - 1.7 * abs(x)) / 2),
    "diamond": lambda y, x: (1.1 - abs(y) - abs(x)) / 1.4,
}


def _texture(kind: str, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A dim background (H, W, 3) float32, 0 to 255."""
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]].astype(np.float32)
    period = min(size) * rng.uniform(0.15, 0.3)
    if kind == "striped":
        angle = rng.uniform(0, np.pi)
        along = rows * np.sin(angle) + columns * np.cos(angle)
        light = 0.5 + 0.5 * np.sin(2 * np.pi * along / period)
    elif kind == "checkered":
        light = (rows // period + columns // period) % 2
    elif kind == "cloudy":
        light = sum(
            0.5 + 0.5 * np.sin(2 * np.pi * (rows * fy + columns * fx) / min(size) + phase)
            for fy, fx, phase in rng.uniform(-1.2, 1.2, (4, 3)) * (1, 1, 3)
        ) / np.float32(4)
    else:
        light = rng.random(size, dtype=np.float32)
    tint = rng.uniform(50, 110, 3).astype(np.float32)
    shade: np.ndarray = tint * (0.5 + 0.5 * light[..., None])
    return shade.astype(np.float32)


def _encode(frames: np.ndarray, fps: int, path: Path) -> None:
    """Write (T, H, W, 3) uint8 frames as H.264 in yuv420p."""
    height, width = frames.shape[1:3]
    command = [
        *(imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-loglevel", "error", "-y"),
        *("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps)),
        *("-i", "pipe:0", "-an", "-c:v", "libx264", "-preset", "veryfast", "-crf", "18"),
        # One thread and no encoder stamp: the same seed gives the same bytes.
        *("-threads", "1", "-pix_fmt", "yuv420p", "-fflags", "+bitexact"),
        *("-flags:v", "+bitexact", "-movflags", "+faststart", str(path)),
    ]
    try:
        done = subprocess.run(
            command,
            input=frames.tobytes(),
            stderr=subprocess.PIPE,
            timeout=ENCODE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        reason = f"it did not end within {ENCODE_TIMEOUT_S} s"
    else:
        if done.returncode == 0:
            return
        reason = done.stderr.decode(errors="replace").strip()[-300:] or f"exit {done.returncode}"
    raise DataError(
        f"ffmpeg could not write a clip: {reason}",
        where=str(path),
        fix="check the free space and permissions of the folder",
    )
