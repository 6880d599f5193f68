"""A sample is complete when its record is there, and stands for the settings that it names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from app.errors import ConfigError
from app.evaluation.prompts import Prompt
from app.run.sample.output import LATENT, VIDEO, Item, Output, packed_strip, unpacked_strip
from app.storage.local import LocalStorage

ITEM = Item(Prompt(3, "a cat"), 1)
FOLDER = "3_a_cat/1/"
SETTINGS = {"prompt": "a cat", "seed": 7}
LATENTS = torch.arange(8.0).reshape(2, 1, 2, 2)


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return Output(LocalStorage(tmp_path), 8)


def test_what_is_written_can_be_read_and_is_recorded(output: Output, tmp_path: Path) -> None:
    record = output.write(ITEM, None, LATENTS, SETTINGS)

    folder = tmp_path / FOLDER
    assert record == {**SETTINGS, "files": [FOLDER + LATENT]}
    assert json.loads((folder / "sample.json").read_text()) == record
    assert output.record(ITEM) == record
    assert (folder / "text.txt").read_text() == "a cat"
    assert torch.equal(safetensors.torch.load_file(folder / LATENT)["latents"], LATENTS)


def test_a_sample_is_done_with_the_wanted_files_and_the_same_settings(output: Output) -> None:
    assert not output.is_done(ITEM, SETTINGS, [LATENT])
    output.write(ITEM, None, LATENTS, SETTINGS)

    assert output.is_done(ITEM, SETTINGS, [LATENT])
    assert not output.is_done(ITEM, SETTINGS, [VIDEO, LATENT])
    with pytest.raises(ConfigError, match=r"another sample is there: its seed differs\n"):
        output.is_done(ITEM, {**SETTINGS, "seed": 8}, [LATENT])
    with pytest.raises(ConfigError, match=r"another sample is there: its seed, fps differ\n"):
        output.is_done(ITEM, {**SETTINGS, "seed": 8, "fps": 3}, [LATENT])


def test_a_recorded_file_that_is_gone_or_empty_is_made_again(
    output: Output, tmp_path: Path
) -> None:
    output.write(ITEM, None, LATENTS, SETTINGS)
    (tmp_path / FOLDER / LATENT).write_bytes(b"")
    assert not output.is_done(ITEM, SETTINGS, [LATENT])

    (tmp_path / FOLDER / LATENT).unlink()
    assert not output.is_done(ITEM, SETTINGS, [LATENT])


def test_no_two_samples_share_their_random_numbers() -> None:
    items = [Item(Prompt(number, "x"), k) for number in range(40) for k in range(40)]

    assert len({item.position for item in items}) == len(items)


def test_the_overview_lists_all_samples_and_shows_the_new_ones(
    output: Output, tmp_path: Path
) -> None:
    records = [{"seed": 1}, {"seed": 2}]
    video = torch.full((4, 3, 48, 32), 200, dtype=torch.uint8)
    shape, text = packed_strip(video)
    strip = unpacked_strip(json.loads(json.dumps([shape, text])))

    assert output.write_overview({"made": 0}, records, []) == ["samples.json"]
    keys = output.write_overview({"made": 1}, records, [strip])

    assert shape == [3, 96, 4 * 64]  # four frames of 48 x 32 side by side, 96 rows high
    assert torch.equal(strip, torch.full_like(strip, 200))
    assert keys == ["samples.json", "contact_sheet.png"]
    assert json.loads((tmp_path / "samples.json").read_text()) == {"made": 1, "samples": records}
    assert (tmp_path / "contact_sheet.png").read_bytes()[:4] == b"\x89PNG"
