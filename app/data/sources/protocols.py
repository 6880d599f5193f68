"""What a dataset offers to the loader: the abilities of a source."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from app.data.batch import Item
from app.data.left_out import LeftOut
from app.data.video.clip import ClipShape
from app.data.video.sizes import Sizes
from app.storage.objects import Entry

SampleId = tuple[str, str]  # (shard, key); the shard of a folder is ""


class Shapes(Protocol):
    """The sizes at which samples are read. Implemented by ClipShapes and PartShapes."""

    @property
    def configured(self) -> ClipShape:
        """That of the configuration; its frame rate and skipped frames are those of all shapes."""
        ...

    def use(self, shapes: Sequence[ClipShape], of: np.ndarray) -> None:
        """From now on sample i is read at shape number of[i]; -1: it is never read."""
        ...

    def sizes(self) -> Sizes:
        """Size and length of every video, without decoding; scans the data once."""
        ...


class Source(Protocol):
    """Clips by index. What has a body here is that of samples without names and files.

    Implemented by SFTSource, ShardSource, MapSource (a user's dataset) and the views of these.
    """

    @property
    def sample_bytes(self) -> int:
        """Memory of one decoded sample; 0 if unknown."""
        return 0

    @property
    def shapes(self) -> Shapes | None:
        """None: samples have the size that the dataset gives them, and cannot come in buckets."""
        return None

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

    def name(self, index: int) -> str:
        """What the sample is called; unique within its source."""
        return f"[{index}]"

    def identity(self, index: int) -> str:
        """Changes when the sample may have changed: from listings alone, nothing is read."""
        return identity_of(self.fingerprint(), index)

    def shard_id(self, index: int) -> str:
        """The shard of a sample; cheap, and the same wherever the data is."""
        return ""

    def sample_id(self, index: int) -> SampleId:
        """Shard and key of a sample, the same in every run; may open its shard."""
        return "", f"#{index}"

    def left_out(self) -> list[LeftOut]:
        """Samples that got no index."""
        return []

    def expect(self, index: int) -> None:
        """One `read` of this index is coming: a chance to fetch its shard."""
        return

    def release(self, index: int) -> None:
        """One expected `read` of this index will not come."""
        return

    def close(self) -> None:
        """Give back processes and threads; a running `read` then ends with an error."""
        ...


@dataclass(frozen=True, slots=True)
class Original:
    """A sample before anything is decoded.

    Attributes:
        video: bytes of its file.
        caption: as training uses it.
        key: what batches call it.
        where: the sample, for messages.
        metadata: of a sample of a shard.
    """

    video: bytes
    caption: str
    key: str
    where: str
    metadata: Mapping[str, object] = field(default_factory=dict)


@runtime_checkable
class Originals(Protocol):
    """A source whose samples are files or members. Implemented by SFTSource and ShardSource."""

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


def object_version(entry: Entry | None) -> tuple[object, ...]:
    """Distinguishes an object from its next version: size and ETag, or the time without one."""
    if entry is None:
        return ()
    return entry.size_bytes, entry.etag or entry.modified
