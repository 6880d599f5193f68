"""Read a checkpoint at any layout: only the needed byte ranges, every byte verified.

Files are read in the pieces that the manifest has digests of. A piece is fetched when a range
first needs it, verified, and kept in a sparse file on this node's disk, so nothing is
transferred twice.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.checkpoint.catalog import read_manifest
from app.checkpoint.fragments import ParameterInfo, tensor_key
from app.checkpoint.json_file import DamagedError, broken, parse_object
from app.checkpoint.layout import CHECKPOINTS, KINDS, STATE, WEIGHT_KINDS, CheckpointRef, rng_file
from app.checkpoint.manifest import (
    WEIGHTS_PREFIX,
    CheckpointManifest,
    FileRecord,
    FragmentRecord,
)
from app.checkpoint.train_state import TrainState
from app.errors import CheckpointError, DataError
from app.storage.objects import ObjectMissingError, Storage
from app.storage.safetensors_header import (
    HEADER_LENGTH_BYTES,
    ITEM_BYTES,
    TensorPlace,
    header_size,
    parse_header,
)

log = logging.getLogger(__name__)


@contextmanager
def open_checkpoint(
    storage: Storage, ref: CheckpointRef, scratch: Path | None = None
) -> Iterator[Checkpoint]:
    """Open a checkpoint whose files are all there.

    Args:
        storage: the run's folder, `<save>/<run id>`.
        ref: which one; `find_newest` finds the newest.
        scratch: folder on this node's disk for verified pieces; default: the system's.

    Raises:
        CheckpointError: unfinished, or its manifest or the sizes of its files are wrong.
    """
    try:
        manifest = read_manifest(storage, ref)
    except ObjectMissingError as missing:
        raise CheckpointError(
            "this checkpoint was never finished: it has no manifest",
            where=f"{storage.url}/{ref.folder}",
            fix=f"take another one: cogvx storage ls {storage.url}/{CHECKPOINTS}",
        ) from missing
    if scratch is not None:
        scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{ref.name}-", dir=scratch) as folder:
        yield Checkpoint(storage, ref, manifest, Path(folder))


class Checkpoint:
    """An open checkpoint. Made by `open_checkpoint`."""

    def __init__(
        self, storage: Storage, ref: CheckpointRef, manifest: CheckpointManifest, folder: Path
    ) -> None:
        self.ref = ref
        self.manifest = manifest
        self._storage = storage
        self._folder = folder
        self._lock = threading.Lock()
        self._opened: dict[str, _VerifiedFile] = {}
        self._tables: dict[str, dict[str, TensorPlace]] = {}
        self._fragments: dict[tuple[str, bool], list[FragmentRecord]] = {}
        for fragment in sorted(manifest.fragments):
            is_weight = fragment.file.startswith(WEIGHTS_PREFIX)
            self._fragments.setdefault((fragment.name, is_weight), []).append(fragment)

    @property
    def state(self) -> TrainState:
        """Counters of the run.

        Raises:
            CheckpointError: there is no state.json, or it is damaged.
        """
        return TrainState.from_json(self._whole(STATE), self._where(STATE))

    def rng(self, rank: int) -> dict[str, Any] | None:
        """States of a rank's global generators; None when none were saved for it."""
        name = rng_file(rank)
        if self.manifest.file(name) is None:
            log.warning(
                "no states of random generators", extra={"rank": rank, "checkpoint": self.ref.name}
            )
            return None
        return parse_object(self._whole(name), self._where(name))

    def check_parameters(self, expected: Mapping[str, ParameterInfo]) -> None:
        """Compare with the parameters that a run trains, before anything is read.

        Raises:
            CheckpointError: names the first one that is missing, extra, or of another shape.
        """
        stored = self.manifest.parameters
        missing = next((name for name in expected if name not in stored), None)
        extra = next((name for name in stored if name not in expected), None)
        if missing is not None or extra is not None:
            count = f"it has {len(stored)} parameters, the run trains {len(expected)}"
            first = f"lacks {missing!r}" if missing is not None else f"has {extra!r} in addition"
            raise CheckpointError(
                f"the checkpoint {first}; {count}",
                where=self._where(""),
                fix="use the model configuration it was trained with, or another --run-id",
            )
        for name, info in expected.items():
            if stored[name].shape != tuple(info.shape):
                raise CheckpointError(
                    f"{name} has shape {stored[name].shape}, the run needs {tuple(info.shape)}",
                    where=self._where(""),
                    fix="use the model configuration it was trained with, or another --run-id",
                )

    def read(self, name: str, kind: str, start: int, numel: int) -> Tensor:
        """Entries [start, start + numel) of a flattened parameter, from any layout.

        Returns:
            (numel,) fp32 on the CPU; the caller owns it.

        Raises:
            CheckpointError: not stored, outside of the parameter, or a damaged file (named).
        """
        record = self.manifest.parameters.get(name)
        if record is None or kind not in record.kinds:
            raise CheckpointError(
                f"{kind} of {name!r} is not stored",
                where=self._where(""),
                fix=f"stored are {', '.join(record.kinds) if record else 'other parameters'}",
            )
        assert kind in KINDS, kind
        if start < 0 or numel < 0 or start + numel > record.numel:
            raise CheckpointError(
                f"entries {start}-{start + numel} of {name} were requested, it has {record.numel}",
                where=self._where(""),
                fix="use the model configuration it was trained with",
            )
        values = torch.empty(numel, dtype=torch.float32)
        for fragment in self._fragments.get((name, kind in WEIGHT_KINDS), []):
            first = max(start, fragment.start)
            last = min(start + numel, fragment.start + fragment.numel)
            if first < last:
                values[first - start : last - start] = self._entries(fragment, kind, first, last)
        return values

    def read_whole(self, name: str, kind: str = "master") -> Tensor:
        """A whole parameter in its shape."""
        record = self.manifest.parameters.get(name)
        if record is None:
            return self.read(name, kind, 0, 0)  # raises, with the reason
        return self.read(name, kind, 0, record.numel).view(record.shape)

    def _entries(self, fragment: FragmentRecord, kind: str, first: int, last: int) -> Tensor:
        key = tensor_key(kind, fragment.name, fragment.start)
        place = self._table(fragment.file).get(key)
        where = self._where(fragment.file)
        if place is None or place.dtype != "F32" or place.shape != (fragment.numel,):
            raise broken(f"it does not hold {key} as the manifest says", where)
        width = ITEM_BYTES[place.dtype]
        begin = place.start + (first - fragment.start) * width
        data = self._file(fragment.file).read(begin, begin + (last - first) * width)
        return torch.frombuffer(data, dtype=torch.float32)

    def _table(self, name: str) -> dict[str, TensorPlace]:
        with self._lock:
            known = self._tables.get(name)
        if known is None:
            file, where = self._file(name), self._where(name)
            try:
                size = header_size(bytes(file.read(0, HEADER_LENGTH_BYTES)), where)
                known = parse_header(bytes(file.read(0, size)), file.size_bytes, where)
            except CheckpointError:
                raise
            except DataError as error:
                fix = "the file is damaged; take another checkpoint"
                raise DamagedError(error.what, where=error.where, fix=fix) from error
            with self._lock:
                self._tables[name] = known
        return known

    def _whole(self, name: str) -> bytes:
        file = self._file(name)
        return bytes(file.read(0, file.size_bytes))

    def _file(self, name: str) -> _VerifiedFile:
        with self._lock:
            if name not in self._opened:
                record = self.manifest.file(name)
                if record is None:
                    raise broken(f"{name} is not part of it", self._where(""))
                path = self._folder / name
                self._opened[name] = _VerifiedFile(self._storage, self.ref, record, path)
            return self._opened[name]

    def _where(self, name: str) -> str:
        return f"{self._storage.url}/{self.ref.folder}/{name}".rstrip("/")


class _VerifiedFile:
    """Byte ranges of one remote file, through a local copy of its verified pieces."""

    def __init__(
        self, storage: Storage, ref: CheckpointRef, record: FileRecord, path: Path
    ) -> None:
        self.size_bytes = record.size_bytes
        self._storage = storage
        self._key = ref.file(record.name)
        self._record = record
        self._path = path
        self._have: set[int] = set()
        self._lock = threading.Lock()
        path.touch()

    def read(self, start: int, stop: int) -> bytearray:
        """Bytes [start, stop), in writable memory that the caller owns."""
        if not 0 <= start <= stop <= self.size_bytes:
            raise broken(f"it has no bytes {start}-{stop}", f"{self._storage.url}/{self._key}")
        piece_bytes = self._record.piece_bytes
        with self._lock:
            if stop > start:
                for index in range(start // piece_bytes, (stop - 1) // piece_bytes + 1):
                    if index not in self._have:
                        self._fetch(index)
            data = bytearray(stop - start)
            with self._path.open("rb") as file:
                file.seek(start)
                file.readinto(data)
        return data

    def _fetch(self, index: int) -> None:
        begin = index * self._record.piece_bytes
        end = min(begin + self._record.piece_bytes, self.size_bytes)
        for _ in range(2):  # once more: the transfer may be at fault, not the stored file
            data = self._storage.read_range(self._key, begin, end)
            if hashlib.sha256(data).hexdigest() == self._record.sha256[index]:
                with self._path.open("r+b") as file:
                    file.seek(begin)
                    file.write(data)
                self._have.add(index)
                return
        raise DamagedError(
            f"{self._record.name} is damaged: bytes {begin}-{end - 1} have another sha256 "
            "than the manifest says",
            where=f"{self._storage.url}/{self._key}",
            fix="restore from another checkpoint",
        )
