"""State dicts in torch pickles, opened so that nothing in them can run code.

`torch.load(weights_only=True)` admits tensors and plain containers. SAT checkpoints also hold the
numpy random state of the run; the classes it needs, and nothing else, are admitted on top.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from app.errors import InputMissingError, WeightsError
from app.storage.safetensors_header import (
    GZIP,
    HEADER_LENGTH_BYTES,
    LFS_POINTER,
    WEB_PAGE,
    apparent_kind,
)

# Entries that may hold a state dict, in the order of preference: SAT and DeepSpeed, others.
WRAPPERS = ("module", "state_dict", "model")


def _numpy_random_state() -> list[Any]:
    """What a pickled `numpy.random.get_state()` is made of, under old and new module names."""
    reconstruct = np.array([0], dtype=np.uint32).__reduce__()[0]
    return [
        (reconstruct, "numpy.core.multiarray._reconstruct"),
        (reconstruct, "numpy._core.multiarray._reconstruct"),
        np.ndarray,
        np.dtype,
        type(np.dtype(np.uint32)),
    ]


# What torch raises for a file that is cut short or garbled.
DAMAGED = (
    *(RuntimeError, EOFError, OSError, MemoryError),
    *(ValueError, LookupError, TypeError, AttributeError),
)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a .pt, .pth, .bin or .ckpt file, by name; memory-mapped where the file allows.

    Raises:
        InputMissingError: no such file.
        WeightsError: not a torch file, no tensors in it, or it needs a class that is not admitted.
    """
    if not path.is_file():
        raise InputMissingError("there is no such file", where=str(path), fix="check the path")
    with path.open("rb") as file:
        kind = apparent_kind(file.read(HEADER_LENGTH_BYTES))
    if kind in (LFS_POINTER, WEB_PAGE, GZIP):
        raise WeightsError(kind.what, where=str(path), fix=kind.fix)
    if _is_plain_zip(path):
        raise WeightsError(
            "a zip archive, not a torch file",
            where=str(path),
            fix="unpack it and name the weights in it; cogvx weights put takes it as it is",
        )
    with torch.serialization.safe_globals(_numpy_random_state()):
        content = _load(path)
    tensors = _tensors_of(content)
    if not tensors:
        raise WeightsError(
            "no tensors by name in this file",
            where=str(path),
            fix=f"expected a state dict, bare or under {', '.join(WRAPPERS)}",
        )
    return tensors


def _load(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_mappable(path))
    except pickle.UnpicklingError as cause:
        raise WeightsError(
            f"the file needs more than tensors and plain containers: {_first_line(cause)}",
            where=str(path),
            fix="we do not run code from weight files; save its state dict again from the "
            "program that made it, as tensors only",
        ) from cause
    except (*DAMAGED, zipfile.BadZipFile) as cause:
        raise WeightsError(
            f"not a readable torch file ({_first_line(cause)})",
            where=str(path),
            fix="fetch it again; it may be cut short",
        ) from cause


def _is_plain_zip(path: Path) -> bool:
    """Whether it is a zip that torch did not write: those of torch hold a `data.pkl`."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return not any(Path(name).name == "data.pkl" for name in archive.namelist())


def _is_mappable(path: Path) -> bool:
    """Whether torch can map the file: it takes the bytes of an entry as they are in the zip.

    The format before torch 1.6 is not a zip; other programs compress the entries.
    """
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())


def _tensors_of(content: object) -> dict[str, Tensor]:
    """Tensors of the outermost mapping that has any; wrappers first."""
    if not isinstance(content, Mapping):
        return {}
    for wrapper in WRAPPERS:
        if isinstance(content.get(wrapper), Mapping):
            return _tensors_of(content[wrapper])
    return {name: t for name, t in content.items() if isinstance(t, Tensor)}


def _first_line(cause: Exception) -> str:
    lines = [line for line in str(cause).splitlines() if "GLOBAL" in line or "global" in line]
    return (lines or str(cause).splitlines() or [type(cause).__name__])[0].strip()
