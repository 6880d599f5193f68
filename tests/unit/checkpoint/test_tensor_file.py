from __future__ import annotations

from pathlib import Path

import pytest
import torch

from app.checkpoint.tensor_file import open_tensors, write_tensors
from app.errors import DataError, InputMissingError


def test_tensors_come_back_with_dtype_shape_and_bits(tmp_path: Path) -> None:
    tensors = {
        "a": torch.arange(6, dtype=torch.float32).reshape(2, 3) / 7,
        "b": torch.tensor([1.0, -0.0, float("nan")], dtype=torch.bfloat16),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(3, dtype=torch.int64),
    }

    write_tensors(tmp_path / "x.safetensors", tensors, {"format": "pt"})

    with open_tensors(tmp_path / "x.safetensors") as reader:
        assert set(reader.names()) == set(tensors)
        assert reader.metadata == {"format": "pt"}
        for name, tensor in tensors.items():
            assert reader.shape(name) == tuple(tensor.shape)
            assert reader.dtype(name) == tensor.dtype
            read = reader.read(name)
            assert read.dtype == tensor.dtype
            assert read.reshape(-1).view(torch.uint8).tolist() == (
                tensor.reshape(-1).view(torch.uint8).tolist()
            )


def test_tied_and_strided_tensors_are_written_as_copies(tmp_path: Path) -> None:
    weight = torch.arange(12.0).reshape(3, 4)

    write_tensors(tmp_path / "x.safetensors", {"w": weight, "tied": weight, "turned": weight.t()})

    with open_tensors(tmp_path / "x.safetensors") as reader:
        assert reader.read("tied").tolist() == weight.tolist()
        assert reader.read("turned")[1].tolist() == [1.0, 5.0, 9.0]


def test_a_tensor_that_is_not_there_is_named(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(1)})

    with (
        open_tensors(tmp_path / "x.safetensors") as reader,
        pytest.raises(DataError, match="'missing'"),
    ):
        reader.read("missing")


def test_a_missing_file_is_an_input_error(tmp_path: Path) -> None:
    with (
        pytest.raises(InputMissingError, match=r"gone\.safetensors"),
        open_tensors(tmp_path / "gone.safetensors"),
    ):
        pass


def test_a_cut_file_is_a_data_error(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.zeros(100)})
    path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(DataError, match=r"x\.safetensors"), open_tensors(path):
        pass


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.ones(2)})

    with pytest.raises((TypeError, AttributeError)):
        write_tensors(path, {"a": "not a tensor"})  # type: ignore[dict-item]

    with open_tensors(path) as reader:
        assert reader.read("a").tolist() == [1.0, 1.0]
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]
