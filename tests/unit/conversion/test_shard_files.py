"""Several files with an index, as diffusers reads them."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch
import torch

from app.conversion.shard_files import write_shards

TENSORS = {name: torch.arange(10.0) + i for i, name in enumerate(("d", "a", "c", "b"))}  # 40 bytes


def test_what_fits_into_one_file_has_neither_number_nor_index(tmp_path: Path) -> None:
    files = write_shards(tmp_path / "new", "model", TENSORS, max_bytes=160)

    assert [file.name for file in files] == ["model.safetensors"]
    assert list((tmp_path / "new").iterdir()) == files
    read = safetensors.torch.load_file(files[0])
    assert sorted(read) == sorted(TENSORS)
    assert all(torch.equal(read[name], tensor) for name, tensor in TENSORS.items())


def test_files_stay_below_the_limit_and_the_index_says_where_each_tensor_is(
    tmp_path: Path,
) -> None:
    tensors = {**TENSORS, "large": torch.zeros(30)}

    files = write_shards(tmp_path, "model", tensors, max_bytes=100)

    names = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    assert [file.name for file in files] == [*names, "model.safetensors.index.json"]
    content = [sorted(safetensors.torch.load_file(tmp_path / name)) for name in names]
    assert content == [["a", "d"], ["b", "c"], ["large"]]
    index = json.loads(files[-1].read_text())
    assert index["metadata"]["total_size"] == 4 * 40 + 120
    assert index["weight_map"] == {
        tensor: name for name, held in zip(names, content, strict=True) for tensor in held
    }


def test_sizes_count_after_the_cast(tmp_path: Path) -> None:
    files = write_shards(tmp_path, "model", TENSORS, torch.bfloat16, max_bytes=80)

    assert [file.name for file in files] == ["model.safetensors"]
    assert {t.dtype for t in safetensors.torch.load_file(files[0]).values()} == {torch.bfloat16}
