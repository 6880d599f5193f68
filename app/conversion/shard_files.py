"""Safetensors in several files with an index, as diffusers and transformers read them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from app.checkpoint.tensor_file import write_tensors

MAX_SHARD_BYTES = 5 * 2**30


def write_shards(
    folder: Path,
    stem: str,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
    max_bytes: int = MAX_SHARD_BYTES,
) -> list[Path]:
    """One `<stem>.safetensors`, or numbered ones and `<stem>.safetensors.index.json`.

    Tensors are cast file by file, so that a copy of one file is all that casting costs.

    Args:
        folder: made if it is not there.
        stem: of the names.
        tensors: by their names in the files.
        dtype: of floating-point tensors in the files; None: as they are.
        max_bytes: of one file; a larger tensor has a file of its own.

    Returns:
        The files written, the index last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    groups = list(_groups(tensors, dtype, max_bytes))
    if len(groups) == 1:
        path = folder / f"{stem}.safetensors"
        write_tensors(path, cast(tensors, dtype), {"format": "pt"})
        return [path]
    files: list[Path] = []
    owner: dict[str, str] = {}
    for number, names in enumerate(groups, 1):
        path = folder / f"{stem}-{number:05}-of-{len(groups):05}.safetensors"
        write_tensors(path, cast({n: tensors[n] for n in names}, dtype), {"format": "pt"})
        owner |= dict.fromkeys(names, path.name)
        files.append(path)
    total = sum(size_bytes(tensor, dtype) for tensor in tensors.values())
    index = folder / f"{stem}.safetensors.index.json"
    content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(owner.items()))}
    index.write_text(json.dumps(content, indent=2) + "\n")
    return [*files, index]


def cast(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The tensors in another float dtype; None leaves them as they are."""
    return {name: t.detach().to(dtype or t.dtype) for name, t in tensors.items()}


def size_bytes(tensor: Tensor, dtype: torch.dtype | None = None) -> int:
    """Of the tensor once it is cast."""
    return tensor.numel() * (dtype or tensor.dtype).itemsize


def _groups(
    tensors: Mapping[str, Tensor], dtype: torch.dtype | None, max_bytes: int
) -> Iterator[list[str]]:
    names: list[str] = []
    filled = 0
    for name, tensor in tensors.items():
        size = size_bytes(tensor, dtype)
        if names and filled + size > max_bytes:
            yield names
            names, filled = [], 0
        names.append(name)
        filled += size
    yield names
