from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from app.checkpoint.tensor_file import header_size, open_tensors, parse_header, write_tensors
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


def test_the_parsed_header_points_at_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.arange(4.0), "b": torch.arange(3, dtype=torch.bfloat16)})
    content = path.read_bytes()

    size = header_size(content[:8], "x")
    table = parse_header(content[:size], len(content), "x")

    a, b = table["a"], table["b"]
    assert a.shape == (4,)
    assert np.frombuffer(content[a.start : a.stop], np.float32).tolist() == [0, 1, 2, 3]
    assert b.dtype == torch.bfloat16
    assert b.stop - b.start == 6


def head_of(entry: dict[str, object]) -> bytes:
    text = json.dumps({"a": entry}).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [4], "data_offsets": [0, 17]},
        {"dtype": "F32", "shape": [4], "data_offsets": [4096, 4112]},
        {"dtype": "F32", "shape": [-4, -1], "data_offsets": [0, 16]},
        {"dtype": "C64", "shape": [2], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [4]},
    ],
)
def test_a_lying_header_is_refused(entry: dict[str, object]) -> None:
    head = head_of(entry)

    with pytest.raises(DataError, match=r"weights-0\.safetensors"):
        parse_header(head, len(head) + 16, "weights-0.safetensors")


@pytest.mark.parametrize("prefix", [b"", b"\x00" * 8, b"\xff" * 8, b"<html>\r\n"])
def test_an_absurd_header_length_is_refused(prefix: bytes) -> None:
    with pytest.raises(DataError, match="not a safetensors file"):
        header_size(prefix, "x")
