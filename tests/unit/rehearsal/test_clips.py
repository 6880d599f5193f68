"""Demo clips: real H.264 files that show what their captions say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from app.errors import ConfigError, DataError
from app.rehearsal.clips import COLOURS, DIRECTIONS, Scene, all_captions, draw_scene, make_clips


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    make_clips(folder, 5, size=(48, 64), fps=8, seconds=1.5, seed=7)
    return folder


def read(path: Path) -> tuple[dict[str, object], np.ndarray]:
    reader = imageio_ffmpeg.read_frames(str(path))
    facts = next(reader)
    width, height = facts["size"]
    frames = [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]
    return facts, np.stack(frames)


def test_every_clip_has_a_video_and_a_caption(folder: Path) -> None:
    videos = sorted(path.name for path in (folder / "videos").iterdir())
    labels = sorted(path.name for path in (folder / "labels").iterdir())

    assert videos == [f"{i:03d}.mp4" for i in range(5)]
    assert labels == [f"{i:03d}.txt" for i in range(5)]
    captions = {path.read_text().strip() for path in (folder / "labels").iterdir()}
    assert len(captions) == 5
    assert captions <= set(all_captions())


def test_videos_are_h264_of_the_size_rate_and_length_asked_for(folder: Path) -> None:
    facts, frames = read(folder / "videos" / "000.mp4")

    assert facts["codec"] == "h264"
    assert facts["pix_fmt"].startswith("yuv420p")  # type: ignore[attr-defined]
    assert facts["fps"] == 8
    assert frames.shape == (12, 48, 64, 3)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(
    folder: Path, tmp_path: Path
) -> None:
    for name, seed in (("same", 7), ("other", 8)):
        make_clips(tmp_path / name, 2, size=(48, 64), fps=8, seconds=1.5, seed=seed)

    expected = (folder / "videos" / "001.mp4").read_bytes()
    assert (tmp_path / "same" / "videos" / "001.mp4").read_bytes() == expected
    assert (tmp_path / "other" / "videos" / "001.mp4").read_bytes() != expected


@pytest.mark.parametrize("shape", ["circle", "square", "triangle", "diamond"])
@pytest.mark.parametrize("direction", sorted(DIRECTIONS))
def test_the_shape_has_its_colour_and_moves_as_the_caption_says(shape: str, direction: str) -> None:
    scene = Scene(shape, "red", direction, "grainy")

    frames = draw_scene(scene, (48, 64), 8, np.random.default_rng(0))

    is_shape = (frames == COLOURS["red"]).all(axis=-1)
    centres = np.array([np.argwhere(mask).mean(axis=0) for mask in is_shape])
    moved = centres[-1] - centres[0]
    wanted = np.array(DIRECTIONS[direction])
    assert (np.abs(moved) > 20).tolist() == (wanted != 0).tolist()
    assert (moved * wanted).max() > 20


def test_captions_name_every_fact() -> None:
    scene = Scene("circle", "blue", "up", "striped")

    assert scene.caption == "a blue circle moves up over a striped background"


def test_scenes_do_not_repeat_before_all_were_shown(tmp_path: Path) -> None:
    clips = make_clips(tmp_path, 24, size=(16, 16), fps=2, seconds=1, seed=0)

    assert len({clip.caption.split(" over ")[0] for clip in clips}) == 24


@pytest.mark.parametrize(("size", "seconds"), [((47, 64), 1.0), ((48, 64), 0.0), ((8, 64), 1.0)])
def test_clips_that_cannot_be_made_are_refused(
    tmp_path: Path, size: tuple[int, int], seconds: float
) -> None:
    with pytest.raises(ConfigError, match="cannot make clips"):
        make_clips(tmp_path, 1, size=size, seconds=seconds)


def test_a_failing_encoder_is_reported_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "videos" / "000.mp4").mkdir(parents=True)

    with pytest.raises(DataError, match="ffmpeg could not write") as caught:
        make_clips(tmp_path, 1, size=(16, 16), fps=2, seconds=1)

    assert caught.value.where.endswith("000.mp4")


def test_clips_need_no_torch() -> None:
    code = "import sys, app.rehearsal.clips; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
