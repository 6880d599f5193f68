"""The folder of encoded clips: which file is where, and what the names stand for.

    <root>/<settings>/cache.json                       the settings, written first
    <root>/<settings>/shards/<2 letters>/<key>.safetensors   one clip each, written once
    <root>/<settings>/datasets/<dataset>/part-00000-of-00001.jsonl   which sample is which key
    <root>/weights/<version>.json                      sha256 of weights that were seen

`settings` is a digest of everything that the numbers follow from but the clip itself; `key` is
one of the settings, the video's bytes and its caption. So a name says what is inside: two jobs
that encode the same clip write the same object, an object is written whole or not at all, and a
clip that changes gets another one. A dataset's list is written when all its clips are there.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from app.data.json_files import UNREADABLE, parsed_or_none
from app.errors import DataError
from app.storage.objects import Entry, ObjectMissingError, Storage
from app.storage.safetensors_header import (
    HEADER_LENGTH_BYTES,
    METADATA,
    TensorPlace,
    header_bytes,
    header_size,
    parse_header,
)

FORMAT = "cogvx-latents-1"
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
        table[METADATA] = {**notes, "sha256": _digest(table, notes, data)}
        return header_bytes(table) + bytes(data)

    @classmethod
    def from_bytes(cls, data: bytes, key: str, where: str) -> LatentEntry:
        """Read a file.

        Raises:
            DamagedEntryError: not such a file, of another key, or changed since it was written.
        """
        try:
            return _parsed(bytearray(data), key, where)
        except (DataError, *UNREADABLE) as problem:
            what = problem.what if isinstance(problem, DataError) else problem
            raise DamagedEntryError(
                f"a file of the latent cache is damaged: {what}",
                where=where,
                fix="delete the file and run `cogvx encode` again",
            ) from problem


def _digest(
    table: Mapping[str, object], notes: Mapping[str, str], data: bytearray | memoryview
) -> str:
    """sha256 of everything in the file but itself."""
    digest = hashlib.sha256(json.dumps([table, notes], sort_keys=True).encode())
    digest.update(data)
    return digest.hexdigest()


def _parsed(data: bytearray, key: str, where: str) -> LatentEntry:
    start = header_size(bytes(data[:HEADER_LENGTH_BYTES]), where)
    head = bytes(data[:start])
    places = parse_header(head, len(data), where)
    table = json.loads(head[HEADER_LENGTH_BYTES:])
    notes = table.pop(METADATA)
    if notes["format"] != FORMAT:
        raise ValueError(f"its format is {notes['format']!r}, not {FORMAT}")
    if notes["key"] != key:
        raise ValueError(f"it is the entry {notes['key']}")
    claimed = notes.pop("sha256")
    if _digest(table, notes, memoryview(data)[start:]) != claimed:
        raise ValueError("its digest does not fit its content")
    tensors = {name: _tensor(data, place) for name, place in places.items()}
    return LatentEntry(
        mean=tensors["mean"],
        logvar=tensors["logvar"],
        text=tensors["text"],
        first_frame=tensors.get("first_frame"),
        caption=str(notes["caption"]),
        num_frames=int(notes["num_frames"]),
        fps=float(notes["fps"]),
    )


def _tensor(data: bytearray, place: TensorPlace) -> Tensor:
    """A copy of the bytes, which only this entry uses."""
    size_bytes = place.stop - place.start
    flat = torch.frombuffer(data, dtype=torch.uint8, count=size_bytes, offset=place.start)
    return flat.clone().view(DTYPES[place.dtype]).reshape(place.shape)


CACHE_VERSION = 1
SETTINGS_NAME = "cache.json"
WEIGHTS_FOLDER = "weights"
SUFFIX = ".safetensors"
FOLDER_NAME = re.compile(r"[0-9a-f]{32}")
KEY = re.compile(r"[0-9a-f]{64}")
KEY_BYTES = 32  # of a key, written as 64 hex digits
KEYS = np.dtype(f"S{KEY_BYTES}")  # compares and sorts as the digits do
LISTERS = 8
READ_BYTES = 8 << 20  # of a list at a time
LINES = 1000  # that are parsed at a time
_SHARDS = re.compile(r"[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """What the numbers of a cache follow from: plain values by name."""

    values: Mapping[str, object]

    @property
    def digest(self) -> str:
        """Name of the folder."""
        return hashlib.sha256(self.to_json()).hexdigest()[:32]

    def to_json(self) -> bytes:
        """`cache.json`; the same bytes for the same settings."""
        content = {"format_version": CACHE_VERSION, "settings": self.values}
        return json.dumps(content, indent=1, sort_keys=True).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> CacheSettings | None:
        """Read `cache.json`; None when another program or version wrote it."""

        def parse(content: Mapping[str, Any]) -> CacheSettings | None:
            is_known = content["format_version"] == CACHE_VERSION
            return cls(dict(content["settings"])) if is_known else None

        return parsed_or_none(data, parse)

    def differences(self, other: CacheSettings) -> dict[str, tuple[object, object]]:
        """Name -> (value here, value of `other`), where they are not the same."""
        names = sorted({*self.values, *other.values})
        pairs = {name: (self.values.get(name), other.values.get(name)) for name in names}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


@dataclass(frozen=True, slots=True)
class SampleRecord:
    """One sample of a dataset as the encoder found it.

    Attributes:
        name: of the sample in its source.
        identity: of its files (`Originals.identity`) when they were read.
        key: of its entry; "" for a clip that cannot be used.
        size_bytes: of its entry.
        shown: what batches and messages call the sample.
        reason, detail: why it cannot be used.
        sha256: of the video file of a clip that cannot be used, where its bytes were there.
    """

    name: str
    identity: str
    key: str = ""
    size_bytes: int = 0
    shown: str = ""
    reason: str = ""
    detail: str = ""
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class EncodePart:
    """One of several jobs that encode a dataset together."""

    index: int = 0
    count: int = 1

    def of(self, total: int) -> range:
        """The samples of this part: neighbours, because they are in the same tar shards."""
        return range(self.index * total // self.count, (self.index + 1) * total // self.count)

    @property
    def name(self) -> str:
        return f"part-{self.index:05}-of-{self.count:05}.jsonl"


@dataclass(frozen=True, eq=False, slots=True)
class Listing:
    """Entries that are there, with their sizes: 40 bytes each.

    Attributes:
        keys: (n,) KEYS, ascending.
        sizes: (n,) int64, in bytes.
    """

    keys: np.ndarray
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    def sizes_of(self, keys: np.ndarray) -> np.ndarray:
        """Bytes of each of (m,) keys; -1 for one that is not there."""
        if not len(self):
            return np.full(len(keys), -1, dtype=np.int64)
        places = np.minimum(np.searchsorted(self.keys, keys), len(self) - 1)
        sizes: np.ndarray = np.where(self.keys[places] == keys, self.sizes[places], -1)
        return sizes

    def size_of(self, key: str) -> int | None:
        """Bytes of one entry; None when it is not there."""
        size = int(self.sizes_of(packed([key]))[0])
        return None if size < 0 else size


class LatentCache:
    """One set of settings below a cache's root.

    Args:
        open_below: opens a folder below the root by its name.
        settings: what the clips are encoded with.
    """

    def __init__(self, open_below: Callable[[str], Storage], settings: CacheSettings) -> None:
        self.storage = open_below(settings.digest)
        self.settings = settings

    @property
    def url(self) -> str:
        return self.storage.url

    def begin(self) -> None:
        """Write the settings, unless they are there."""
        data = self.settings.to_json()
        try:
            if self.storage.read_small(SETTINGS_NAME) == data:
                return
        except ObjectMissingError:
            pass  # the first job of these settings
        self.storage.write_small(SETTINGS_NAME, data)

    def key_of(self, video_sha256: str, caption: str) -> str:
        """The entry of a clip: 64 hex digits."""
        parts = (self.settings.digest, video_sha256, caption)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def present(self) -> Listing:
        """Every entry that is there; a folder at a time, so that few are objects at once."""
        folders = [name for name in self.storage.folders("shards") if _SHARDS.fullmatch(name)]
        keys, sizes = bytearray(), bytearray()
        with ThreadPoolExecutor(LISTERS) as pool:
            for found, size in pool.map(self._present_in, folders):
                keys += found.data.cast("B")
                sizes += size.data.cast("B")
        return Listing(np.frombuffer(keys, KEYS), np.frombuffer(sizes, np.int64))

    def _present_in(self, folder: str) -> tuple[np.ndarray, np.ndarray]:
        """Keys and sizes of the entries of one folder."""
        prefix, size = f"shards/{folder}/", {}
        for entry in self.storage.list(prefix):
            key = entry.key.removeprefix(prefix).removesuffix(SUFFIX)
            if KEY.fullmatch(key) and shard_key(key) == entry.key:
                size[key] = entry.size_bytes
        return packed(list(size)), np.array(list(size.values()), dtype=np.int64)

    def size_of(self, key: str) -> int | None:
        """Bytes of one entry; None when it is not there."""
        try:
            return self.storage.stat(shard_key(key)).size_bytes
        except ObjectMissingError:
            return None

    def records(self, dataset: str) -> Iterator[SampleRecord]:
        """What every part that was ever finished knows of a dataset, read piece by piece.

        Raises:
            DataError: a list cannot be read; what came before is void.
        """
        for entry in self.storage.list(dataset_folder(dataset)):
            yield from _records(self.storage, entry)

    def write_records(
        self, dataset: str, part: EncodePart, records: Sequence[SampleRecord]
    ) -> None:
        """Publish a finished part; written last, so that whatever it names is there."""
        head = {"format_version": CACHE_VERSION, "dataset": dataset, "samples": len(records)}
        rows: Iterable[object] = (astuple(record) for record in records)
        lines = (json.dumps(row, ensure_ascii=False) for row in chain([head], rows))
        data = "".join(f"{line}\n" for line in lines).encode()
        self.storage.write_small(dataset_folder(dataset) + part.name, data)


def packed(keys: Sequence[str]) -> np.ndarray:
    """Keys of 64 hex digits as (n,) KEYS; zeros for what is none."""
    digits = [key if KEY.fullmatch(key) else "00" * KEY_BYTES for key in keys]
    return np.frombuffer(bytes.fromhex("".join(digits)), KEYS)


def shard_key(key: str) -> str:
    """Key of an entry below its settings."""
    return f"shards/{key[:2]}/{key}{SUFFIX}"


def dataset_folder(dataset: str) -> str:
    """Folder of the lists of a dataset; `dataset` is its path as the configuration names it."""
    return f"datasets/{hashlib.sha256(dataset.encode()).hexdigest()[:16]}/"


def _records(storage: Storage, entry: Entry) -> Iterator[SampleRecord]:
    try:
        lines = _lines(storage, entry)
        head = json.loads(next(lines, b""))
        is_known, count = head["format_version"] == CACHE_VERSION, 0
        while is_known and (some := list(islice(lines, LINES))):
            rows = json.loads(b"[%b]" % b",".join(some))
            yield from (SampleRecord(*row) for row in rows)
            count += len(some)
        if not is_known or head["samples"] != count:
            raise ValueError("it is cut short, or of another version")
    except UNREADABLE as problem:
        raise DataError(
            f"a list of the latent cache cannot be read: {problem}",
            where=f"{storage.url}/{entry.key}",
            fix="delete the file and run `cogvx encode` again",
        ) from problem


def _lines(storage: Storage, entry: Entry) -> Iterator[bytes]:
    """Lines of an object, which is read a piece at a time."""
    rest = b""
    for start in range(0, entry.size_bytes, READ_BYTES):
        stop = min(start + READ_BYTES, entry.size_bytes)
        *whole, rest = (rest + storage.read_range(entry.key, start, stop)).split(b"\n")
        yield from whole
    if rest:
        yield rest
