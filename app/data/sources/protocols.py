"""What a dataset offers to the loader, and what every dataset is told."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from app.data.batch import Item
from app.data.video.clip import ClipShape
from app.data.video.sizes import Sizes
from app.storage.objects import Entry


class Source(Protocol):
    """Clips by index. Implemented by SFTSource, ShardSource and MapSource (a user's dataset)."""

    @property
    def sample_bytes(self) -> int:
        """Memory of one decoded sample; 0 if unknown."""
        ...

    def __len__(self) -> int:
        """Samples of the dataset."""
        ...

    def shard_sizes(self) -> Sequence[int]:
        """Samples per shard, in the order of the indexes; a folder is one shard."""
        ...

    def fingerprint(self) -> str:
        """sha256 of what the order and the content of the samples follow from."""
        ...

    def read(self, index: int, position: int) -> Item:
        """Sample `index`; `position` keys what is random about it. Called from many threads.

        Raises:
            BadClipError: this sample cannot be used.
            DataError, InputMissingError: its shard cannot.
        """
        ...

    def expect(self, index: int) -> None:
        """One `read` of this index is coming: a chance to fetch its shard."""
        ...

    def release(self, index: int) -> None:
        """One expected `read` of this index will not come."""
        ...

    def close(self) -> None:
        """Give back processes and threads; a running `read` then ends with an error."""
        ...


@runtime_checkable
class SizedSource(Source, Protocol):
    """A source whose samples can be read at several sizes. Implemented by ours."""

    @property
    def shape(self) -> ClipShape:
        """The configured one; its frame rate and skipped frames are those of all shapes."""
        ...

    def use_shapes(self, shapes: Sequence[ClipShape], of: np.ndarray) -> None:
        """From now on sample i is read at shape number of[i]; -1: it is never read."""
        ...

    def clip_sizes(self) -> Sizes:
        """Size and length of every video, without decoding; looks through the data once."""
        ...


@dataclass(frozen=True, slots=True)
class Original:
    """A sample before anything is decoded.

    `video` are the bytes of its file, `key` is what batches call it.
    """

    video: bytes
    caption: str
    key: str


@runtime_checkable
class Originals(Protocol):
    """A source whose samples are files or members. Implemented by SFTSource and ShardSource."""

    def name(self, index: int) -> str:
        """What the sample is called; unique within its source."""
        ...

    def identity(self, index: int) -> str:
        """Another text when the sample may have changed: from listings alone, nothing is read."""
        ...

    def original(self, index: int) -> Original:
        """The sample's bytes.

        Raises:
            BadClipError: its caption cannot be used.
            DataError, InputMissingError: its file or shard cannot.
        """
        ...


def identity_of(*facts: object) -> str:
    """A short digest of facts that JSON can hold."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def version_of(entry: Entry | None) -> tuple[object, ...]:
    """What tells an object from its next version: size and ETag, or the time without one."""
    if entry is None:
        return ()
    return entry.size_bytes, entry.etag or entry.modified


SampleId = tuple[str, str]  # (shard, key); the shard of a folder is ""


@runtime_checkable
class NamedSamples(Protocol):
    """A source whose samples have names that outlive a run."""

    def shard_id(self, index: int) -> str:
        """The shard of a sample; cheap, and the same wherever the data lies."""
        ...

    def sample_id(self, index: int) -> SampleId:
        """Shard and key of a sample; may open its shard."""
        ...


def shard_id(source: Source, index: int) -> str:
    """The shard of a sample; "" for sources that do not name their samples."""
    return source.shard_id(index) if isinstance(source, NamedSamples) else ""


def sample_id(source: Source, index: int) -> SampleId:
    """Shard and key of a sample; its number for sources that do not name their samples."""
    return source.sample_id(index) if isinstance(source, NamedSamples) else ("", f"#{index}")


def left_out(source: Source) -> list[tuple[str, str, str]]:
    """(shard, key, reason) of samples that got no index, from sources that know of such."""
    found = getattr(source, "left_out", None)
    return found() if callable(found) else []
