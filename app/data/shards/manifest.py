"""The list of a dataset's shards: names, sizes, identities, counts.

`dataset.manifest.json` is stored with the shards. It is made once (by `cogvx data pack`, or by the
first run, from the tar headers), compared with a listing at every start, and is what the order of
samples is computed from. So is the index of each shard's members (`index.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any

from app.data.json_files import parsed
from app.data.shards.index import INDEX_VERSION, MP4_VERSION
from app.errors import DataError, InputMissingError
from app.storage.objects import OWN_KEY, Entry

MANIFEST_NAME = "dataset.manifest.json"
MANIFEST_VERSION = 1
CLOCK_TOLERANCE_S = 1e-3  # both times come from listings; only rounding may differ


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One shard. `etag` and `modified` are None where the storage gives none."""

    name: str  # key relative to the folder
    bytes: int
    etag: str | None
    modified: float | None  # seconds since the epoch
    sha256: str | None  # of the whole file; known for shards that `cogvx data pack` wrote
    samples: int
    index: str  # key of the side file
    index_sha256: str  # digest of the members (index.index_digest)
    no_caption: int = 0  # samples without any member that could hold a caption
    left_out: int = 0  # samples that cannot be used; the side file says why


@dataclass(frozen=True, slots=True)
class SidecarEntry:
    """A `.meta.jsonl` beside a shard: captions may come from it."""

    name: str
    bytes: int
    etag: str | None
    modified: float | None
    sha256: str

    def is_same(self, entry: Entry) -> bool:
        """Whether a listing shows the file that was read."""
        return (self.bytes, self.etag, self.modified) == (
            entry.size_bytes,
            entry.etag or None,
            entry.modified,
        )


@dataclass(frozen=True, slots=True)
class DatasetManifest:
    """The shards of one folder, sorted by name, and the side files with captions.

    `index_version` is that of the rules by which samples were left out (index.py); manifests of
    the first version do not say it.
    """

    shards: tuple[ShardEntry, ...]
    made_by: str
    index_version: int = INDEX_VERSION
    sidecars: tuple[SidecarEntry, ...] = ()

    def by_name(self) -> dict[str, ShardEntry]:
        return {shard.name: shard for shard in self.shards}

    def to_json(self) -> bytes:
        """The file; the same bytes for the same shards."""
        content: dict[str, object] = {
            "format_version": MANIFEST_VERSION,
            "made_by": self.made_by,
            **({} if self.index_version == MP4_VERSION else {"index_version": self.index_version}),
            "samples_total": sum(shard.samples for shard in self.shards),
            "shards": [asdict(shard) for shard in sorted(self.shards, key=lambda s: s.name)],
            **({"sidecars": [asdict(one) for one in self.sidecars]} if self.sidecars else {}),
        }
        content["sha256_of_this"] = _digest(content)
        return json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes, where: str) -> DatasetManifest:
        """Read a manifest.

        Raises:
            DataError: not JSON, another version, or edited.
        """

        def parse(content: dict[str, Any]) -> DatasetManifest:
            version = content["format_version"]
            if version != MANIFEST_VERSION:
                raise ValueError(f"format_version {version}, this version reads {MANIFEST_VERSION}")
            claimed = content.pop("sha256_of_this")
            if claimed != _digest(content):
                raise ValueError("its digest does not fit its content")
            return cls(
                tuple(shard_from_json(shard) for shard in content["shards"]),
                str(content["made_by"]),
                int(content.get("index_version", MP4_VERSION)),
                tuple(SidecarEntry(**one) for one in content.get("sidecars", ())),
            )

        return parsed(
            data,
            parse,
            what="the dataset's manifest cannot be read",
            where=where,
            fix="delete it: the next run makes it again from the shards",
        )


def identity_change(
    shard: ShardEntry, listing: Mapping[str, Entry], folder: str
) -> DataError | None:
    """Compare a shard with what a listing of the folder shows now.

    Returns:
        The error of a shard of the same size and another identity: rewritten, or only copied.

    Raises:
        InputMissingError: the shard is gone.
        DataError: it has another size; names the old and the new one.
    """
    entry = listing.get(shard.name)
    if entry is None:
        raise missing_shard(f"{folder}/{shard.name}")
    if entry.size_bytes != shard.bytes:
        raise changed(folder, shard, "size", f"{shard.bytes} bytes", f"{entry.size_bytes} bytes")
    if shard.etag and entry.etag:
        same = shard.etag == entry.etag
        return None if same else changed(folder, shard, "ETag", shard.etag, entry.etag)
    if shard.etag or entry.etag or shard.modified is None or entry.modified is None:
        # One side with and one without an ETag are different kinds of storage: a copy, whose
        # times say nothing.
        return None
    # S3 and http give whole seconds.
    whole = shard.modified.is_integer() or entry.modified.is_integer()
    if abs(shard.modified - entry.modified) <= (1.0 if whole else CLOCK_TOLERANCE_S):
        return None
    old, new = (_moment(time) for time in (shard.modified, entry.modified))
    return changed(folder, shard, "modification time", old, new)


def missing_shard(url: str) -> InputMissingError:
    return InputMissingError(
        "a shard of the dataset is not there",
        where=url,
        fix="upload it again; if it was removed on purpose, delete dataset.manifest.json with "
        "the shards and start a new run",
    )


def changed(folder: str, shard: ShardEntry, kind: str, old: str, new: str) -> DataError:
    return DataError(
        f"a shard changed since the manifest was made: its {kind} was {old} and is now {new}",
        where=f"{folder}/{shard.name}",
        fix="restore the shard; to accept the change, set data.on_changed_shard: rescan "
        "and start a new run",
    )


def updated(shard: ShardEntry, entry: Entry) -> ShardEntry:
    """The shard with the identity that the storage shows now."""
    return replace(shard, etag=entry.etag or None, modified=entry.modified)


def fingerprint(shards: Iterable[tuple[str, ShardEntry]]) -> str:
    """sha256 of everything that the order of samples and their content follow from.

    Not of ETags and times: a dataset copied to another bucket is the same dataset.
    """
    digest = hashlib.sha256()
    for folder, shard in shards:
        line = [folder, shard.name, shard.bytes, shard.samples, shard.index_sha256]
        digest.update(json.dumps(line).encode() + b"\n")
    return digest.hexdigest()


def index_key(name: str) -> str:
    """Key of the index of a shard: `x-000.tar` -> `x-000.index.json`.

    Names that we would not write ourselves get their digest instead.
    """
    return _side_file(name, "index")


def sizes_key(name: str) -> str:
    """Key of the sizes of a shard's videos: `x-000.tar` -> `x-000.sizes.json`."""
    return _side_file(name, "sizes")


def _side_file(name: str, kind: str) -> str:
    key = f"{name.removesuffix('.tar')}.{kind}.json"
    if OWN_KEY.fullmatch(key):
        return key
    return f"dataset.{kind}-{hashlib.sha256(name.encode()).hexdigest()[:24]}.json"


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _digest(content: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# A shard among processes that run the same code: its fields in their order.
shard_row: Callable[[ShardEntry], tuple[Any, ...]] = attrgetter(
    *(field.name for field in fields(ShardEntry))
)


def shard_from_json(values: Mapping[str, object]) -> ShardEntry:
    """A shard of the manifest, each field checked.

    Raises:
        ValueError, TypeError: a field is unknown, missing or of another kind.
    """
    unknown = set(values) - {field.name for field in fields(ShardEntry)}
    if unknown:
        raise ValueError(f"unknown fields {sorted(unknown)} of a shard")
    shard = ShardEntry(**values)  # type: ignore[arg-type]
    numbers = (shard.bytes, shard.samples, shard.no_caption, shard.left_out)
    texts = (shard.name, shard.index, shard.index_sha256)
    if not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise ValueError(f"a number of shard {shard.name!r} is {numbers}")
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"a name of shard {shard.name!r} is not text")
    return shard
