"""What a run keeps of every sample of a latent cache: arrays, which a node's processes can share.

40 bytes a sample, and a note for a sample that its batches do not call what its source does:

    keys     (n, 32) uint8   digest that names the entry; zeros: there is none
    sizes    (n,) uint32     number of the entry's size in `lengths`
    notes    (n,) uint32     number of the note, or NO_NOTE
    lengths  (m,) uint64     the sizes that there are, in bytes: few, as clips have few shapes
    text     notes, 64 to a zlib block: one line of JSON each, `shown` or
             `[shown, reason, detail, sha256]`. Neighbours have similar names, so a note takes a
             few bytes; 23 where the names are random UUIDs.
    ends     (blocks,) uint64   where the blocks end in `text`
"""

from __future__ import annotations

import json
import mmap
import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from app.data.latent_cache import KEY_BYTES, SampleRecord, packed

NO_NOTE = 0xFFFF_FFFF
NOTES_OF_A_BLOCK = 64
MARK_BYTES = 16
_NO_KEY = bytes(KEY_BYTES)
_COUNTS = 4  # samples, lengths, blocks, bytes of text


@dataclass(frozen=True, eq=False, slots=True)
class LatentTable:
    """Entry of every sample of a source, in its order; see the module text for the arrays."""

    keys: np.ndarray
    sizes: np.ndarray
    notes: np.ndarray
    lengths: np.ndarray
    text: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is kept."""
        return sum(part.nbytes for part in (*self._parts, self.text))

    @property
    def largest(self) -> int:
        """Bytes of the largest entry; 0 when there is none."""
        return int(self.lengths[self.sizes].max(initial=0))

    def key(self, index: int) -> str:
        """The entry of a sample: 64 hex digits; "" when it has none."""
        key = self.keys[index].tobytes()
        return "" if key == _NO_KEY else key.hex()

    def size(self, index: int) -> int:
        """Bytes of the entry of a sample."""
        return int(self.lengths[self.sizes[index]])

    def record(self, index: int, name: str, identity: str = "") -> SampleRecord:
        """What is known of a sample, which its source gives this name and identity.

        Neither a key nor a reason: nothing.
        """
        number = int(self.notes[index])
        note = [name] if number == NO_NOTE else self._note(number)
        return SampleRecord(name, identity, self.key(index), self.size(index), *note)

    def write(self, file: BinaryIO, mark: bytes) -> None:
        """Write everything to the beginning of a file, behind 16 bytes that tell it from others."""
        parts = (self.sizes, self.lengths, self.ends, self.text)
        counts = np.array([len(part) for part in parts], dtype=np.uint64)
        file.write(mark)
        for part in (counts, *self._parts, self.text):
            file.write(np.ascontiguousarray(part).data.cast("B") if part.size else b"")
        file.flush()

    @classmethod
    def mapped(cls, file: BinaryIO, mark: bytes) -> LatentTable:
        """The table in a file, as memory that all processes share; `file` may then be closed.

        Raises:
            ValueError: it is not the file that was written with this mark.
        """
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if memory[:MARK_BYTES] != mark:
            raise ValueError("this is another file")
        place = MARK_BYTES

        def take(count: int, dtype: type[np.generic]) -> np.ndarray:
            nonlocal place
            found: np.ndarray = np.frombuffer(memory, dtype, count, place)
            place += found.nbytes
            return found

        samples, sizes_there, blocks, text = (int(count) for count in take(_COUNTS, np.uint64))
        lengths, ends = take(sizes_there, np.uint64), take(blocks, np.uint64)
        sizes, notes = take(samples, np.uint32), take(samples, np.uint32)
        keys = take(samples * KEY_BYTES, np.uint8).reshape(samples, KEY_BYTES)
        return cls(keys, sizes, notes, lengths, take(text, np.uint8), ends)

    @property
    def _parts(self) -> tuple[np.ndarray, ...]:
        """Everything but the text, largest numbers first: each is aligned in the file."""
        return self.lengths, self.ends, self.sizes, self.notes, self.keys

    def _note(self, number: int) -> list[str]:
        block, line = divmod(number, NOTES_OF_A_BLOCK)
        start = int(self.ends[block - 1]) if block else 0
        lines = zlib.decompress(self.text[start : int(self.ends[block])].data).split(b"\n")
        note = json.loads(lines[line])
        return [note] if isinstance(note, str) else note


class TableBuilder:
    """Fills the table of a source of `samples` samples, in any order."""

    def __init__(self, samples: int) -> None:
        self._keys = np.zeros((samples, KEY_BYTES), dtype=np.uint8)
        self._sizes = np.zeros(samples, dtype=np.uint32)
        self._lengths = {0: 0}  # size -> its number
        self._notes = np.full(samples, NO_NOTE, dtype=np.uint32)
        self._lines: list[str] = []  # of the block that is not full yet
        self._text = bytearray()
        self._ends = array("Q")

    def put(self, index: np.ndarray, records: Sequence[SampleRecord]) -> None:
        """Keep what is known of samples, instead of what was.

        Args:
            index: (m,) of the samples, each once.
            records: one of each.
        """
        keys = packed([record.key for record in records])
        self._keys[index] = keys.view(np.uint8).reshape(-1, KEY_BYTES)
        numbers = (record.size_bytes for record in records)
        self._sizes[index] = [self._lengths.setdefault(n, len(self._lengths)) for n in numbers]
        self._notes[index] = [self._noted(record) for record in records]

    def finished(self) -> LatentTable:
        """The table; nothing can be put any more."""
        self._close_block()
        return LatentTable(
            keys=self._keys,
            sizes=self._sizes,
            notes=self._notes,
            lengths=np.array(list(self._lengths), dtype=np.uint64),
            text=np.frombuffer(self._text, np.uint8),
            ends=np.frombuffer(self._ends, np.uint64),
        )

    def _noted(self, record: SampleRecord) -> int:
        """The number of the note of a record, which is added; NO_NOTE where it needs none."""
        if not record.reason and record.shown == record.name:
            return NO_NOTE
        why = (record.shown, record.reason, record.detail, record.sha256)
        if len(self._lines) == NOTES_OF_A_BLOCK:
            self._close_block()
        self._lines.append(json.dumps(why if record.reason else record.shown))
        return len(self._ends) * NOTES_OF_A_BLOCK + len(self._lines) - 1

    def _close_block(self) -> None:
        if self._lines:
            self._text += zlib.compress("\n".join(self._lines).encode())
            self._ends.append(len(self._text))
            self._lines.clear()
