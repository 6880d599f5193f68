"""The header of a safetensors file: which tensor is at which bytes; what a file is instead.

Source: the safetensors format (huggingface/safetensors README): 8 bytes little-endian header
length, JSON header `{name: {dtype, shape, data_offsets}}`, then the data. Needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

from app.errors import DataError

HEADER_LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself
ALIGNMENT = 8  # the header is padded with blanks, so that the numbers after it are aligned
METADATA = "__metadata__"  # notes of the writer, strings only
ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "BOOL": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
}
FIX = "the file is damaged: fetch it or write it again"


class FileKind(NamedTuple):
    """`what` the file is, and how to get (`fix`) what was meant."""

    what: str
    fix: str


LFS_POINTER = FileKind(
    "a pointer of Git LFS, not the file itself", "run `git lfs pull` in the repository it is from"
)
WEB_PAGE = FileKind(
    "a web page, not the file itself", "download it again; the address may ask for an account"
)
GZIP = FileKind("compressed with gzip", "unpack it first")
ZIP = FileKind("a zip archive or a torch file", "convert or unpack it first")
PICKLE = FileKind("a Python pickle", "convert it first: `cogvx convert --help`")

_BY_PREFIX = {
    b"version ": LFS_POINTER,
    b"<!": WEB_PAGE,
    b"<h": WEB_PAGE,
    b"<?": WEB_PAGE,
    b"\x1f\x8b": GZIP,
    b"PK\x03\x04": ZIP,
    b"\x80\x02": PICKLE,
}


def apparent_kind(prefix: bytes) -> FileKind | None:
    """The kind of a file that begins with `prefix` (HEADER_LENGTH_BYTES of it); None: not known."""
    begins = (kind for start, kind in _BY_PREFIX.items() if prefix.startswith(start))
    return next(begins, None)


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """Where one tensor is in a file: absolute byte offsets, `stop` exclusive.

    `dtype` is a key of ITEM_BYTES.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def header_bytes(table: Mapping[str, object]) -> bytes:
    """The start of a file; the same bytes for the same table."""
    text = json.dumps(table, sort_keys=True).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(HEADER_LENGTH_BYTES, "little") + text


def header_size(prefix: bytes, where: str) -> int:
    """Bytes before the first tensor's data, from the first 8 bytes of a file.

    Raises:
        DataError: the length is absurd: not a safetensors file.
    """
    length = int.from_bytes(prefix[:HEADER_LENGTH_BYTES], "little")
    if len(prefix) < HEADER_LENGTH_BYTES or not 2 <= length <= MAX_HEADER_BYTES:
        kind = apparent_kind(prefix)
        what = kind.what if kind else f"the header claims {length} bytes"
        raise DataError(
            f"{what}: not a safetensors file", where=where, fix=kind.fix if kind else FIX
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
    try:
        entries = json.loads(head[HEADER_LENGTH_BYTES:])
        return {
            name: _place(name, entry, len(head), file_bytes)
            for name, entry in entries.items()
            if name != METADATA
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as cause:
        raise DataError(f"the header does not parse ({cause!r})", where=where, fix=FIX) from cause


def _place(name: str, entry: dict[str, Any], data_start: int, file_bytes: int) -> TensorPlace:
    dtype = entry["dtype"]
    if dtype not in ITEM_BYTES:
        raise ValueError(f"{name} has dtype {dtype}, not one of {', '.join(sorted(ITEM_BYTES))}")
    shape = tuple(int(size) for size in entry["shape"])
    start, stop = (data_start + int(offset) for offset in entry["data_offsets"])
    size_bytes = prod(shape) * ITEM_BYTES[dtype]
    if min(shape, default=0) < 0 or not data_start <= start <= stop <= file_bytes:
        raise ValueError(f"{name} is outside of the file")
    if stop - start != size_bytes:
        raise ValueError(f"{name} has {stop - start} bytes, its shape needs {size_bytes}")
    return TensorPlace(dtype, shape, start, stop)
