"""Item 10: which frames make a clip, how they are resized and cut, which caption they have."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.data.bad_clip import BadClipError
from app.data.names import is_video_name
from app.data.sources.captions import CaptionFiles
from app.data.sources.settings import SourceSettings
from app.data.video import frames
from app.data.video.frames import FrameRequest
from app.data.video.transforms import crop_origin, resize_and_crop, resized_size, scale_pixels
from app.errors import DataError
from app.storage.opening import open_storage
from tests.parity import golden
from tests.parity.golden import Case

ITEMS = ("10",)
CASES = golden.cases(*ITEMS)


def rows(section: str) -> list[Any]:
    return [
        pytest.param(row, id=f"{case.path.stem}-{section}-{number}")
        for case in CASES
        for number, row in enumerate(case.json.get(section, ()))
    ]


@pytest.mark.parametrize("row", rows("sft_dataset"))
def test_folder_rule_picks_the_recorded_frames(row: dict[str, Any]) -> None:
    request = FrameRequest(row["max_num_frames"], row["target_fps"], row["skip_frms_num"])

    if "error" in row:
        with pytest.raises(BadClipError):
            frames.sat_folder(row["num_frames_in_file"], row["orig_fps"], request)
        return
    picked = frames.sat_folder(row["num_frames_in_file"], row["orig_fps"], request)

    assert list(picked.frames) == row["picked"]
    assert picked.num_frames == row["item_num_frames"]


@pytest.mark.parametrize("row", rows("web_dataset"))
def test_shard_rule_picks_the_recorded_frames(row: dict[str, Any]) -> None:
    request = FrameRequest(row["num_frames"], row["target_fps"], row["skip_frms_num"])
    length = row["nb_read_frames"] or row["num_frames_in_file"]
    required_s = frames.sat_shards_duration_s(row["orig_fps"], request)

    assert required_s == pytest.approx(row["required_duration"], rel=1e-12)
    if row["duration"] is not None:
        assert (row["duration"] >= required_s) == row["sample_kept"]
    crop = random.Random(row["seed"])
    if "error" in row:
        with pytest.raises(BadClipError):
            frames.sat_shards(length, row["orig_fps"], row["duration"], request, crop)
        return
    picked = frames.sat_shards(length, row["orig_fps"], row["duration"], request, crop)

    assert list(picked.frames) == row["picked"]
    assert picked.num_frames == row["num_frames"]


@pytest.mark.parametrize("row", rows("resize_crop"))
def test_sizes_and_crops_are_the_recorded_ones(row: dict[str, Any]) -> None:
    target = tuple(row["target_hw"])
    dice = None if row["mode"] == "center" else np.random.RandomState(row["numpy_seed"])

    size = resized_size(tuple(row["in_hw"]), target)
    top, left = crop_origin(size, target, dice)

    assert list(size) == row["resized"]
    assert [top, left, *target] == row["crop"]
    assert list(target) == row["out_hw"]


@pytest.mark.parametrize("case", CASES, ids=golden.name_of)
def test_pixels_are_the_recorded_ones(case: Case) -> None:
    levels = case.tolerance("uint8_levels")
    with case:
        for group in sorted({name.split("/")[1] for name in case.names("pixels/")}):
            pixels = case.tensor(f"pixels/{group}/input")
            expected = case.tensor(f"pixels/{group}/output_uint8")
            target = (expected.shape[-2], expected.shape[-1])

            actual = resize_and_crop(pixels, target)
            one_by_one = torch.cat([resize_and_crop(frame[None], target) for frame in pixels])

            assert actual.dtype == torch.uint8
            assert (actual.int() - expected.int()).abs().max() <= levels
            assert torch.equal(one_by_one, actual)
            normalised = case.tensor(f"pixels/{group}/normalized")
            case.assert_close(scale_pixels(actual), normalised, "normalized")
            floats = case.tensor(f"pixels/{group}/output_float_input")
            torch.testing.assert_close(
                resize_and_crop(pixels.float(), target), floats, rtol=1e-5, atol=1e-3
            )
            aliased = case.tensor(f"pixels/{group}/output_uint8_no_antialias")
            ours = resize_and_crop(pixels, target, antialias=False)
            assert (ours.int() - aliased.int()).abs().max() <= levels


@pytest.mark.parametrize("row", rows("sft_listing"))
def test_folder_listing_pairs_videos_with_the_recorded_captions(
    row: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in row["files"].items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)  # upstream replaces names in the path as it was given
    storage = open_storage(row["root"])
    entries = {entry.key: entry for entry in storage.list()}
    keys = [key for key in sorted(entries) if is_video_name(key, upstream=True)]
    captions = CaptionFiles(storage, entries, SourceSettings(caption_rule="sat"))

    if "error" in row:
        with pytest.raises(DataError, match="have no caption"):
            captions.check(keys)
        return
    captions.check(keys)

    assert [[f"{row['root']}/{key}", captions.read(key)] for key in keys] == row["pairs"]
