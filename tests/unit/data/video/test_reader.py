from __future__ import annotations

import gc
from argparse import Namespace
from pathlib import Path

import av
import numpy as np
import pytest

from app.config.schema.data import SFTDataConfig
from app.data.bad_clip import BadClipError
from app.data.sources.sft import SFTSource
from app.data.video.decoder import VideoDecoder, VideoFacts
from app.data.video.reader import Reader, begins_anew, is_vp9_key_frame
from tests.support import numbered_videos
from tests.support.numbered_videos import RECIPES, TURNS, drawn_number, make, shown_by_ffmpeg


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("numbered")


def decoded(decoder: VideoDecoder, path: Path, part: slice) -> tuple[VideoFacts, list[np.ndarray]]:
    """The frames of a part of a file."""
    frames: dict[int, np.ndarray] = {}

    def choose(facts: VideoFacts) -> range:
        frames.clear()
        return range(facts.frames)[part]

    facts = decoder.decode(
        path.read_bytes(), choose, lambda place, frame: frames.__setitem__(place, frame.copy())
    )
    return facts, [frames[place] for place in sorted(frames)]


@pytest.mark.parametrize("name", [*RECIPES, *TURNS])
def test_every_frame_is_the_one_that_ffmpeg_shows(
    decoder: VideoDecoder, folder: Path, name: str
) -> None:
    path = make(folder, name)
    expected = shown_by_ffmpeg(path)

    half, last = len(expected) // 2, len(expected) - 1
    for part in (slice(None), slice(half, half + 9), slice(half - 2, None, 5), slice(last, None)):
        facts, frames = decoded(decoder, path, part)

        assert facts.frames == len(expected)
        np.testing.assert_array_equal(np.stack(frames), expected[part])


@pytest.mark.parametrize("frame_rule", ["exact", "sat"])
def test_the_dataset_gives_the_frames_that_ffmpeg_shows(
    folder: Path, tmp_path: Path, frame_rule: str
) -> None:
    names = [name for name in RECIPES if RECIPES[name].fps == "24" and "uneven" not in name]
    names = [name for name in names if RECIPES[name].suffix == ".mp4" and "xvid" not in name]
    for name in names:
        path = tmp_path / "videos" / f"{name}.mp4"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(make(folder, name).read_bytes())
        label = tmp_path / "labels" / f"{name}.txt"
        label.parent.mkdir(exist_ok=True)
        label.write_text("bars")
    size = (numbered_videos.ROWS, numbered_videos.COLUMNS)
    params = SFTDataConfig(video_size=size, fps=24, max_num_frames=17, skip_frms_num=3)
    source = SFTSource.create_dataset_function(
        str(tmp_path), Namespace(frame_rule=frame_rule), **{f: getattr(params, f) for f in FIELDS}
    )

    for index, key in enumerate(source.keys):
        item = source[index]
        expected = shown_by_ffmpeg(tmp_path / key)[3:20]
        np.testing.assert_array_equal(item["mp4"].permute(0, 2, 3, 1).numpy(), expected, key)
    source.close()
    assert len(source.keys) == len(names) > 20


FIELDS = ("video_size", "fps", "max_num_frames", "skip_frms_num")


def test_numbers_are_read_back_from_what_ffmpeg_shows(folder: Path) -> None:
    shown = shown_by_ffmpeg(make(folder, "h264_closed"))

    assert [drawn_number(frame) for frame in shown] == list(range(numbered_videos.FRAMES))


def test_a_far_frame_is_reached_from_the_last_safe_place_only(folder: Path) -> None:
    import importlib

    reader = importlib.import_module("app.data.video.reader")
    starts = {}
    for name in ("h264_closed", "h264_open", "h264_intra_refresh", "hevc_open", "mpeg4"):
        path = make(folder, name)
        opened = reader.Reader(path.read_bytes(), "mov", None)
        count = 0
        for frame in opened.frames([40]):
            count += frame.size > 0
        starts[name] = (count, opened._entry(40)[0])

    # Of open groups and refreshed frames nothing is safe but the beginning.
    assert starts["h264_closed"] == (1, 36)
    assert {
        name: start for name, start in starts.items() if name != "h264_closed"
    } == dict.fromkeys(("h264_open", "h264_intra_refresh", "hevc_open", "mpeg4"), (1, 0))


@pytest.mark.parametrize("degrees", [45, 30, 100])
def test_a_video_at_an_angle_is_refused(decoder: VideoDecoder, folder: Path, degrees: int) -> None:
    plain, tilted = make(folder, "h264_closed"), folder / f"tilted{degrees}.mp4"
    numbered_videos.run_ffmpeg(
        ["-display_rotation", str(degrees), "-i", str(plain), "-c", "copy", str(tilted)]
    )

    with pytest.raises(BadClipError) as caught:
        decoder.probe(tilted.read_bytes())

    assert caught.value.reason == "unsupported_orientation"


def test_no_frame_waits_for_the_garbage_collector(folder: Path) -> None:
    reader = Reader(make(folder, "h264_closed").read_bytes(), "mov", None)
    gc.collect()
    gc.disable()
    try:
        taken = sum(1 for _ in reader.frames(range(len(reader.facts.times))))
        alive = sum(isinstance(found, av.VideoFrame) for found in gc.get_objects())
    finally:
        gc.enable()

    assert taken > 40
    assert alive <= 3  # what the filters hold


def test_idr_frames_are_told_from_other_key_frames() -> None:
    avcc = bytes([1, 0, 0, 0, 0xFF])
    sei, idr, other = b"\0\0\0\2\x06\x05", b"\0\0\0\2\x65\x88", b"\0\0\0\2\x41\x88"

    assert begins_anew(sei + idr, "h264", avcc)
    assert not begins_anew(sei + other, "h264", avcc)
    assert not begins_anew(b"\0\0\0\1\x65\x88", "h264", b"")  # start codes
    assert begins_anew(b"\0\0\0\2\x26\x01", "hevc", bytes([1, *[0] * 20, 3]))  # IDR_W_RADL
    assert not begins_anew(b"\0\0\0\2\x2a\x01", "hevc", bytes([1, *[0] * 20, 3]))  # CRA
    assert is_vp9_key_frame(0b1000_0010)
    assert not is_vp9_key_frame(0b1000_0110)
    assert not is_vp9_key_frame(0b1000_1000)


def test_traits_that_change_how_a_clip_looks_are_named(decoder: VideoDecoder, folder: Path) -> None:
    options = {
        "hdr_pq": "-vf setparams=color_trc=smpte2084",
        "hdr_hlg": "-vf setparams=color_trc=arib-std-b67",
        "non_square": "-vf setsar=4/3",
        "interlaced": "-x264-params interlaced=1",
    }
    found = {}
    for name, words in options.items():
        path = folder / f"{name}.mp4"
        source = "-f lavfi -i testsrc2=s=128x96:d=0.5:r=8 -c:v libx264 -pix_fmt yuv420p"
        numbered_videos.run_ffmpeg([*source.split(), *words.split(), str(path)])
        found[name] = decoder.probe(path.read_bytes()).traits

    assert found == {name: (name,) for name in options}
