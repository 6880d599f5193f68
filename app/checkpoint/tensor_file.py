"""Safetensors files: write whole, read one tensor at a time.

The only module that imports safetensors. Reading maps the file, so a tensor costs memory when
its pages are touched and not before. Readers that have byte ranges of a remote file instead of a
local path use `app.storage.safetensors_header`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from app.errors import DataError, InputMissingError

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


def _dtype(code: str, where: Path, name: str) -> torch.dtype:
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
