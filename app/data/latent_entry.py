"""One encoded clip as the bytes of a safetensors file.

Axes: t latent frames, C channels, h rows, w columns of latents; n text tokens, D their width;
H rows and W columns of pixels. The moments of the VAE are kept, not a sample of them, so that the
posterior is drawn anew in every step; the caption's embedding is kept whole, so that it can be
dropped anew. Everything is in the dtype that live encoding would have.

Any safetensors reader opens such a file. It is written and read here without the library, whose
door belongs to the checkpoints: the format is a length, a JSON table and the raw bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from app.errors import DataError

FORMAT = "cogvx-latents-1"
LENGTH_BYTES = 8  # little-endian length of the JSON table
ALIGNMENT = 8  # the table is padded with blanks, so that the numbers after it are aligned
LARGEST_TABLE_BYTES = 1 << 20

CODES: dict[torch.dtype, str] = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.uint8: "U8",
}
DTYPES = {code: dtype for dtype, code in CODES.items()}


class DamagedEntryError(DataError):
    """A file of the latent cache that is not what was written."""


@dataclass(frozen=True, slots=True)
class LatentEntry:
    """What training needs of a clip.

    Attributes:
        mean, logvar: (t, C, h, w) of the posterior, unscaled, logvar clamped.
        text: (n, D) embedding of the caption, not dropped.
        first_frame: (1, 3, H, W) uint8, for image-to-video: its noise is drawn in every step.
        caption: the text itself.
        num_frames: frames of the clip that are not padding.
        fps: of the clip.
    """

    mean: Tensor
    logvar: Tensor
    text: Tensor
    first_frame: Tensor | None
    caption: str
    num_frames: int
    fps: float

    def to_bytes(self, key: str) -> bytes:
        """The file; the same bytes for the same entry."""
        tensors = {"logvar": self.logvar, "mean": self.mean, "text": self.text}
        if self.first_frame is not None:
            tensors["first_frame"] = self.first_frame
        table: dict[str, object] = {}
        data = bytearray()
        for name in sorted(tensors):
            tensor = tensors[name].detach().to("cpu").contiguous()
            raw = tensor.view(torch.uint8).numpy().tobytes()
            table[name] = {
                "dtype": CODES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [len(data), len(data) + len(raw)],
            }
            data += raw
        notes = {
            "format": FORMAT,
            "key": key,
            "caption": self.caption,
            "num_frames": str(self.num_frames),
            "fps": repr(self.fps),
        }
        table["__metadata__"] = {**notes, "sha256": _digest(table, notes, data)}
        head = json.dumps(table, sort_keys=True).encode()
        head += b" " * (-len(head) % ALIGNMENT)
        return len(head).to_bytes(LENGTH_BYTES, "little") + head + bytes(data)

    @classmethod
    def from_bytes(cls, data: bytes, key: str, where: str) -> LatentEntry:
        """Read a file.

        Raises:
            DamagedEntryError: not such a file, of another key, or changed since it was written.
        """
        try:
            return _parsed(bytearray(data), key)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
            raise DamagedEntryError(
                f"a file of the latent cache is damaged: {problem}",
                where=where,
                mend="delete the file and run `cogvx encode` again",
            ) from problem


def _digest(
    table: Mapping[str, object], notes: Mapping[str, str], data: bytearray | memoryview
) -> str:
    """sha256 of everything in the file but itself."""
    digest = hashlib.sha256(json.dumps([table, notes], sort_keys=True).encode())
    digest.update(data)
    return digest.hexdigest()


def _parsed(data: bytearray, key: str) -> LatentEntry:
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    start = LENGTH_BYTES + length
    if len(data) < LENGTH_BYTES or length > LARGEST_TABLE_BYTES or start > len(data):
        raise ValueError("it is cut short")
    table = json.loads(bytes(data[LENGTH_BYTES:start]))
    notes = table.pop("__metadata__")
    if notes["format"] != FORMAT:
        raise ValueError(f"its format is {notes['format']!r}, not {FORMAT}")
    if notes["key"] != key:
        raise ValueError(f"it is the entry {notes['key']}")
    claimed = notes.pop("sha256")
    if _digest(table, notes, memoryview(data)[start:]) != claimed:
        raise ValueError("its digest does not fit its content")
    tensors = {name: _tensor(data, start, row) for name, row in table.items()}
    return LatentEntry(
        mean=tensors["mean"],
        logvar=tensors["logvar"],
        text=tensors["text"],
        first_frame=tensors.get("first_frame"),
        caption=str(notes["caption"]),
        num_frames=int(notes["num_frames"]),
        fps=float(notes["fps"]),
    )


def _tensor(data: bytearray, start: int, row: dict[str, object]) -> Tensor:
    """A view of the bytes, which only this entry uses."""
    dtype = DTYPES[str(row["dtype"])]
    shape = [int(size) for size in row["shape"]]  # type: ignore[attr-defined]
    first, last = (int(offset) for offset in row["data_offsets"])  # type: ignore[attr-defined]
    size_bytes = prod(shape) * dtype.itemsize
    if not 0 <= first <= last <= len(data) - start or last - first != size_bytes:
        raise ValueError("a tensor lies outside of it")
    if size_bytes == 0:
        raise ValueError("a tensor is empty")
    flat = torch.frombuffer(data, dtype=torch.uint8, count=size_bytes, offset=start + first)
    return flat.clone().view(dtype).reshape(shape)
