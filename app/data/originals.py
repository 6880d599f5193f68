"""What a sample is made of, and how to tell without reading it that it may have changed.

The latent cache is keyed by the content of a video file and its caption. Reading every video at
every start of a training would cost what the cache saves, so a listing decides whether a sample
may have changed since it was encoded; the content decides whether it did.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from app.storage.objects import Entry


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
