"""Safetensors files: write whole, read one tensor at a time.

The only module that imports safetensors. Reading maps the file, so a tensor costs memory when
its pages are touched and not before. `parse_header` serves readers that have byte ranges of a
remote file instead of a local path.

Source: the safetensors format (huggingface/safetensors README): 8 bytes little-endian header
length, JSON header `{name: {dtype, shape, data_offsets}}`, then the data.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from app.errors import DataError, InputMissingError

HEADER_LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """Where one tensor is in a file: absolute byte offsets, `stop` exclusive."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


class TensorReader:
    """One open file. Made by `open_tensors`."""

    def __init__(self, opened: Any, path: Path) -> None:
        self._opened = opened
        self._path = path
        self._names = tuple(opened.keys())
        self._known = frozenset(self._names)

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of the header; empty when there is none."""
        return dict(self._opened.metadata() or {})

    def names(self) -> tuple[str, ...]:
        """Names of all tensors, in the order of the library."""
        return self._names

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of a tensor, without reading it."""
        return _dtype(self._slice(name).get_dtype(), self._path, name)

    def read(self, name: str) -> Tensor:
        """The whole tensor on the CPU; its memory may be the mapped file: do not write to it.

        Raises:
            DataError: the file has no such tensor.
        """
        self._check(name)
        tensor: Tensor = self._opened.get_tensor(name)
        return tensor

    def _slice(self, name: str) -> Any:
        self._check(name)
        return self._opened.get_slice(name)

    def _check(self, name: str) -> None:
        if name not in self._known:
            raise DataError(
                f"there is no tensor named {name!r}",
                where=str(self._path),
                fix=f"the file has {len(self._names)} tensors; check that it is the right one",
            )


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write all tensors to one file, or leave the file as it was.

    Args:
        path: the file; its folder must exist.
        tensors: by name; any layout and device. Two names for one memory become two copies.
        metadata: for the header, strings only.

    Raises:
        OSError: the disk is full or not writable.
    """
    temporary = path.with_name(f".{path.name}.part-{os.getpid()}")
    try:
        save_file(_separate(tensors), temporary, dict(metadata) if metadata is not None else None)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def open_tensors(path: Path) -> Iterator[TensorReader]:
    """Open a safetensors file for reading tensors by name.

    Raises:
        InputMissingError: no such file.
        DataError: not a safetensors file, or cut short.
    """
    if not path.is_file():
        raise InputMissingError(
            "there is no such tensor file", where=str(path), fix="check the path"
        )
    try:
        opened = safe_open(path, framework="pt", device="cpu")
    except SafetensorError as cause:
        raise DataError(
            f"not a readable safetensors file ({cause})",
            where=str(path),
            fix="fetch or convert the file again; it may be cut short",
        ) from cause
    with opened as entered:
        yield TensorReader(entered, path)


def header_size(prefix: bytes, where: str) -> int:
    """Bytes before the first tensor's data, from the first 8 bytes of a file.

    Raises:
        DataError: the length is impossible: not a safetensors file.
    """
    length = int.from_bytes(prefix[:HEADER_LENGTH_BYTES], "little")
    if len(prefix) < HEADER_LENGTH_BYTES or not 2 <= length <= MAX_HEADER_BYTES:
        raise DataError(
            f"the header claims {length} bytes: not a safetensors file",
            where=where,
            fix="the file is damaged; use another checkpoint",
        )
    return HEADER_LENGTH_BYTES + length


def parse_header(head: bytes, file_bytes: int, where: str) -> dict[str, TensorPlace]:
    """Read the table of tensors from the first `header_size` bytes of a file.

    Args:
        head: the length field and the whole JSON header.
        file_bytes: size of the whole file; every offset is checked against it.
        where: the file's name, for errors.

    Raises:
        DataError: broken JSON, unknown dtype, or offsets that do not fit shape or file.
    """
    data_start = len(head)
    try:
        entries = json.loads(head[HEADER_LENGTH_BYTES:])
        return {
            name: _place(name, entry, data_start, file_bytes, where)
            for name, entry in entries.items()
            if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, AttributeError) as cause:
        raise DataError(
            f"the header does not parse ({cause!r})",
            where=where,
            fix="the file is damaged; take another checkpoint",
        ) from cause


def _place(
    name: str, entry: dict[str, Any], data_start: int, file_bytes: int, where: str
) -> TensorPlace:
    dtype = _dtype(entry["dtype"], where, name)
    shape = tuple(int(size) for size in entry["shape"])
    start, stop = (data_start + int(offset) for offset in entry["data_offsets"])
    size_bytes = prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or not data_start <= start <= stop <= file_bytes:
        raise ValueError(f"{name} is outside of the file")
    if stop - start != size_bytes:
        raise ValueError(f"{name} has {stop - start} bytes, its shape needs {size_bytes}")
    return TensorPlace(dtype, shape, start, stop)


def _dtype(code: str, where: Path | str, name: str) -> torch.dtype:
    if code not in DTYPES:
        raise DataError(
            f"tensor {name!r} has the unsupported dtype {code}",
            where=str(where),
            fix=f"convert it to one of {', '.join(sorted(DTYPES))}",
        )
    return DTYPES[code]


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # The library refuses two names that share memory (tied weights) and strided views.
    seen: set[int] = set()
    separate: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        flat = tensor.detach().to("cpu").contiguous()
        if flat.numel() and flat.data_ptr() in seen:
            flat = flat.clone()
        seen.add(flat.data_ptr())
        separate[name] = flat
    return separate
