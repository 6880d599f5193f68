"""The manifest: what a checkpoint consists of. Written last, so complete = it exists.

No torch here: listing and retention read this without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from app.checkpoint.json_file import (
    MAX_JSON_BYTES,
    broken,
    canonical_json,
    check_format,
    digest_of,
    parse_object,
    take,
    take_fields,
)
from app.checkpoint.layout import (
    FILE_NAME,
    KINDS,
    MANIFEST,
    MOMENT_KINDS,
    WEIGHT_KINDS,
    CheckpointRef,
)
from app.errors import CheckpointError

FORMAT_VERSION = 1
WEIGHTS_PREFIX = "weights-"
OPTIMIZER_PREFIX = "optim-"
RUN_KINDS = ("lora", "full")


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointIdentity:
    """Whose checkpoint this is, and what it continues."""

    run_id: str
    attempt: int
    owner: str
    step: int
    kind: str  # "lora" or "full"
    parent: str | None = None  # name of the checkpoint before it
    config_sha256: str = ""
    dataset_sha256: str = ""
    base_model_sha256: str = ""

    @property
    def ref(self) -> CheckpointRef:
        """Its folder."""
        return CheckpointRef(self.attempt, self.step)


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file of a checkpoint, with one sha256 per piece."""

    name: str
    size_bytes: int
    piece_bytes: int
    sha256: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Its entry in the manifest."""
        return {
            "name": self.name,
            "bytes": self.size_bytes,
            "piece_bytes": self.piece_bytes,
            "sha256": list(self.sha256),
        }

    @classmethod
    def from_json(cls, entry: Any, where: str) -> FileRecord:
        """Parse an entry of the manifest; CheckpointError when it is invalid."""
        if not isinstance(entry, dict):
            raise broken("a file's record is not an object", where)
        name = take(entry, "name", str, where)
        if FILE_NAME.fullmatch(name) is None or name == MANIFEST:
            raise broken(f"{name[:100]!r} is not the name of a checkpoint's file", where)
        size_bytes = take(entry, "bytes", int, where)
        piece_bytes = take(entry, "piece_bytes", int, where)
        digests = tuple(take(entry, "sha256", list, where))
        whole = all(isinstance(digest, str) and len(digest) == 64 for digest in digests)
        if size_bytes < 0 or piece_bytes <= 0 or not whole:
            raise broken(f"the record of {name} is invalid", where)
        if len(digests) != -(-size_bytes // piece_bytes):
            raise broken(f"the record of {name} has {len(digests)} digests", where)
        return cls(name, size_bytes, piece_bytes, digests)


@dataclass(frozen=True, slots=True)
class ParameterRecord:
    """One parameter: whole shape, optimizer group, and which kinds of values are stored."""

    shape: tuple[int, ...]
    group: int
    kinds: tuple[str, ...]

    @property
    def numel(self) -> int:
        """Entries of the whole tensor."""
        return prod(self.shape)

    @classmethod
    def from_json(cls, name: str, entry: Any, where: str) -> ParameterRecord:
        """Parse an entry of the manifest; CheckpointError when it is invalid."""
        if not isinstance(entry, dict):
            raise broken(f"the record of parameter {name!r} is not an object", where)
        shape = take(entry, "shape", list, where)
        kinds = take(entry, "kinds", list, where)
        fits = all(type(size) is int and size >= 0 for size in shape) and all(
            isinstance(kind, str) and kind in KINDS for kind in kinds
        )
        if not fits:
            raise broken(f"the record of parameter {name!r} is invalid", where)
        return cls(tuple(shape), take(entry, "group", int, where), tuple(kinds))


@dataclass(frozen=True, order=True, slots=True)
class FragmentRecord:
    """Entries [start, start + numel) of a parameter are in a file, in every kind of that file."""

    name: str
    start: int
    numel: int
    file: str

    def to_json(self) -> list[str | int]:
        """Its entry in the manifest."""
        return [self.name, self.start, self.numel, self.file]

    @classmethod
    def from_json(cls, entry: Any, where: str) -> FragmentRecord:
        """Parse an entry of the manifest; CheckpointError when it is invalid."""
        types = [type(field) for field in entry] if isinstance(entry, list) else []
        if types != [str, int, int, str]:
            raise broken("a fragment's record is not [name, start, numel, file]", where)
        return cls(*entry)


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointManifest:
    """Everything that is in one checkpoint."""

    identity: CheckpointIdentity
    created: str  # ISO 8601, UTC; informative only
    files: tuple[FileRecord, ...]
    parameters: Mapping[str, ParameterRecord]
    fragments: tuple[FragmentRecord, ...]

    def to_json(self, where: str) -> bytes:
        """The content of manifest.json.

        Raises:
            CheckpointError: longer than a reader accepts.
        """
        value: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            **asdict(self.identity),
            "created": self.created,
            "files": [file.to_json() for file in self.files],
            "parameters": {name: asdict(record) for name, record in self.parameters.items()},
            "fragments": [fragment.to_json() for fragment in self.fragments],
        }
        value["sha256_of_this"] = digest_of(value)
        data = canonical_json(value)
        if len(data) > MAX_JSON_BYTES:
            raise CheckpointError(
                f"the manifest would have {len(data)} bytes; readers take {MAX_JSON_BYTES}",
                where=where,
                fix="save at fewer ranks or at ZeRO stage 2",
            )
        return data

    @classmethod
    def from_json(cls, data: bytes, where: str) -> CheckpointManifest:
        """Parse and check a manifest, tiling included.

        Raises:
            CheckpointError: damaged, of another format, or contradicting itself.
        """
        value = parse_object(data, where)
        check_format(value, FORMAT_VERSION, where)
        digest = value.pop("sha256_of_this", None)
        if digest != digest_of(value):
            raise broken("its own sha256 does not match: it was changed or truncated", where)
        manifest = cls(
            identity=_identity(value, where),
            created=take(value, "created", str, where),
            files=tuple(
                FileRecord.from_json(entry, where) for entry in take(value, "files", list, where)
            ),
            parameters={
                name: ParameterRecord.from_json(name, entry, where)
                for name, entry in take(value, "parameters", dict, where).items()
            },
            fragments=tuple(
                FragmentRecord.from_json(entry, where)
                for entry in take(value, "fragments", list, where)
            ),
        )
        manifest.check(where)
        return manifest

    def check(self, where: str) -> None:
        """Fragments must tile every parameter, in files that are listed.

        Raises:
            CheckpointError: names the first parameter or file that does not fit.
        """
        names = [file.name for file in self.files]
        if len(set(names)) != len(names):
            raise broken("a file is listed twice", where)
        if unknown := {fragment.file for fragment in self.fragments} - set(names):
            raise broken(f"fragments are in a file that is not listed: {min(unknown)}", where)
        if unknown := {fragment.name for fragment in self.fragments} - set(self.parameters):
            raise broken(f"fragments of an unknown parameter: {min(unknown)}", where)
        for prefix, kinds in ((WEIGHTS_PREFIX, WEIGHT_KINDS), (OPTIMIZER_PREFIX, MOMENT_KINDS)):
            spans: dict[str, list[tuple[int, int]]] = {name: [] for name in self.parameters}
            for fragment in self.fragments:
                if fragment.file.startswith(prefix):
                    spans[fragment.name].append((fragment.start, fragment.numel))
            for name, record in self.parameters.items():
                needed = record.numel if set(kinds) & set(record.kinds) else 0
                check_tiling(f"{name} in {prefix}*", spans[name], needed, where)

    def file(self, name: str) -> FileRecord | None:
        """The record of a file, or None."""
        return next((file for file in self.files if file.name == name), None)

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size_bytes for file in self.files)


def check_tiling(what: str, spans: Iterable[tuple[int, int]], numel: int, where: str) -> None:
    """The (start, numel) spans must cover [0, numel) with no gap and no overlap.

    Raises:
        CheckpointError: names `what` and the first entry that is missing or doubled.
    """
    reached = 0
    for start, count in sorted(spans):
        if start != reached or count <= 0:
            fault = "twice" if start < reached else "by no fragment"
            raise broken(f"{what}: entry {min(start, reached)} is covered {fault}", where)
        reached = start + count
    if reached != numel:
        raise broken(f"{what}: fragments end at {reached}, it has {numel} entries", where)


def _identity(value: dict[str, Any], where: str) -> CheckpointIdentity:
    identity = CheckpointIdentity(**take_fields(CheckpointIdentity, value, where))
    if identity.parent is not None and CheckpointRef.parse(identity.parent) is None:
        raise broken("its parent is not a checkpoint's name", where)
    if identity.kind not in RUN_KINDS:
        raise broken(f"its kind is {identity.kind!r}", where)
    return identity
