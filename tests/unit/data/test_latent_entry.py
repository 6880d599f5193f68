"""One encoded clip as a file: what goes in comes out, and nothing else passes for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from app.data.latent_cache import LatentEntry
from app.errors import DataError

KEY = "ab" * 32


def entry(dtype: torch.dtype = torch.float32, *, with_image: bool = False) -> LatentEntry:
    torch.manual_seed(0)
    frame = torch.randint(0, 256, (1, 3, 5, 7), dtype=torch.uint8)
    return LatentEntry(
        mean=torch.randn(3, 4, 2, 5).to(dtype),
        logvar=torch.randn(3, 4, 2, 5).to(dtype),
        text=torch.randn(16, 6).to(dtype),
        first_frame=frame if with_image else None,
        caption='a "cat"\nund ein Hündchen',
        num_frames=9,
        fps=23.976023976,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("with_image", [False, True])
def test_everything_comes_back_bit_for_bit(dtype: torch.dtype, with_image: bool) -> None:
    written = entry(dtype, with_image=with_image)

    read = LatentEntry.from_bytes(written.to_bytes(KEY), KEY, "here")

    for name in ("mean", "logvar", "text"):
        assert getattr(read, name).dtype == dtype
        assert torch.equal(getattr(read, name), getattr(written, name))
    assert (read.caption, read.num_frames, read.fps) == (written.caption, 9, 23.976023976)
    assert (read.first_frame is not None) == with_image
    if read.first_frame is not None:
        assert torch.equal(read.first_frame, written.first_frame)


def test_the_safetensors_library_reads_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(entry(torch.bfloat16, with_image=True).to_bytes(KEY))

    tensors = safetensors.torch.load_file(path)

    assert tensors.keys() == {"mean", "logvar", "text", "first_frame"}
    assert torch.equal(tensors["mean"], entry(torch.bfloat16).mean)
    assert tensors["first_frame"].shape == (1, 3, 5, 7)


def test_the_same_entry_gives_the_same_bytes() -> None:
    assert entry().to_bytes(KEY) == replace(entry()).to_bytes(KEY)


def test_a_flipped_bit_is_found_wherever_it_is() -> None:
    whole = entry().to_bytes(KEY)
    table_ends = 8 + int.from_bytes(whole[:8], "little")
    padding = len(whole[:table_ends]) - len(whole[:table_ends].rstrip(b" "))

    for place in [*range(table_ends - padding), *range(table_ends, len(whole), 29)]:
        data = bytearray(whole)
        data[place] ^= 1
        with pytest.raises(DataError, match="damaged") as caught:
            LatentEntry.from_bytes(bytes(data), KEY, "s3://b/x")

    assert caught.value.where == "s3://b/x"
    assert "cogvx encode" in caught.value.mend


@pytest.mark.parametrize("length", [0, 5, 8, 200, -1])
def test_a_cut_file_is_found(length: int) -> None:
    data = entry().to_bytes(KEY)

    with pytest.raises(DataError, match="damaged"):
        LatentEntry.from_bytes(data[:length], KEY, "here")


def test_the_entry_of_another_clip_is_refused() -> None:
    with pytest.raises(DataError, match="it is the entry abab"):
        LatentEntry.from_bytes(entry().to_bytes(KEY), "cd" * 32, "here")
