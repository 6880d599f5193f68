"""Write a checkpoint: files by every rank, then the manifest by rank 0, last of all.

A reader accepts a checkpoint only if its manifest exists, so after a crash before that the
previous checkpoint is the newest. Synchronous: it returns when everything is written.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from app.checkpoint.fragments import Exchange, Fragment, ParameterInfo, tensor_key
from app.checkpoint.json_file import canonical_json
from app.checkpoint.layout import (
    KINDS,
    STATE,
    WEIGHT_KINDS,
    CheckpointRef,
    optimizer_file,
    rng_file,
    weights_file,
)
from app.checkpoint.manifest import (
    CheckpointIdentity,
    CheckpointManifest,
    FileRecord,
    FragmentRecord,
    ParameterRecord,
)
from app.checkpoint.tensor_file import write_tensors
from app.checkpoint.train_state import TrainState
from app.errors import CheckpointError, CogvxError, RetryableError
from app.storage.objects import Storage, stat_if_present

log = logging.getLogger(__name__)

FILE_LIMIT_BYTES = 2**30  # a file is cut here, between fragments
GIB = 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """What one rank puts into a checkpoint."""

    fragments: Iterable[Fragment]  # read once; all kinds of one piece one after another
    parameters: Mapping[str, ParameterInfo]  # of the whole run, the same on every rank
    state: TrainState | None  # rank 0 only
    rng: Mapping[str, Any] | None = None  # capture_rng() of this rank


@dataclass(frozen=True, slots=True)
class _RankReport:
    """What one rank reports to rank 0."""

    rank: int
    files: tuple[FileRecord, ...] = ()
    fragments: tuple[FragmentRecord, ...] = ()
    kinds: Mapping[str, Sequence[str]] = field(default_factory=dict)
    not_finite: tuple[str, ...] = ()  # names of parameters with a NaN or an infinity
    failure: str | None = None

    def to_json(self) -> bytes:
        return canonical_json(
            {
                "rank": self.rank,
                "files": [file.to_json() for file in self.files],
                "fragments": [fragment.to_json() for fragment in self.fragments],
                "kinds": self.kinds,
                "not_finite": self.not_finite,
                "failure": self.failure,
            }
        )

    @classmethod
    def from_json(cls, data: bytes, where: str) -> _RankReport:
        value = json.loads(data)
        return cls(
            rank=value["rank"],
            files=tuple(FileRecord.from_json(file, where) for file in value["files"]),
            fragments=tuple(FragmentRecord.from_json(each, where) for each in value["fragments"]),
            kinds=value["kinds"],
            not_finite=tuple(value["not_finite"]),
            failure=value["failure"],
        )


def save_checkpoint(
    storage: Storage,
    identity: CheckpointIdentity,
    snapshot: Snapshot,
    exchange: Exchange,
    scratch: Path,
) -> str | None:
    """Write one checkpoint; every rank calls this, at the end of the same optimizer step.

    Args:
        storage: the run's folder, `<save>/<run id>`.
        identity: the same on every rank.
        snapshot: what this rank owns.
        exchange: brings the reports to rank 0.
        scratch: folder on this node's disk for files before their upload; freed afterwards.

    Returns:
        Name of the checkpoint on rank 0; None on the others.

    Raises:
        CogvxError: it was not published: on the rank that failed its own error, on rank 0
            RetryableError (a rank failed) or CheckpointError (the reports do not fit together, or
            a parameter is not finite).
    """
    started = time.monotonic()
    ref = identity.ref
    if stat_if_present(storage, ref.manifest) is not None:
        # While it is written again its files would differ from the manifest.
        log.info("checkpoint was saved before", extra={"checkpoint": ref.name})
        return ref.name if exchange.rank == 0 else None
    folder = scratch / f"{ref.name}-r{exchange.rank:04}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        report = _RankWriter(storage, ref, exchange, folder).write(snapshot)
    except Exception as error:
        # Without this rank's report the others would wait until their deadline.
        what = error.what if isinstance(error, CogvxError) else repr(error)
        failed = _RankReport(exchange.rank, failure=what)
        exchange.gather(f"checkpoint/{ref.name}", failed.to_json())
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    gathered = exchange.gather(f"checkpoint/{ref.name}", report.to_json())
    if exchange.rank != 0:
        return None
    where = f"{storage.url}/{ref.folder}"
    reports = [_RankReport.from_json(data, where) for data in gathered]
    manifest = _assemble(identity, snapshot, reports, where)
    _publish(storage, ref, manifest)
    log.info(
        "checkpoint published",
        extra={
            "checkpoint": ref.name,
            "size_gib": round(manifest.size_bytes / GIB, 3),
            "seconds": round(time.monotonic() - started, 3),
            "url": where,
        },
    )
    return ref.name


class _RankWriter:
    """Writes and uploads the files of one rank; at most one file of each sort is in memory."""

    def __init__(
        self, storage: Storage, ref: CheckpointRef, exchange: Exchange, folder: Path
    ) -> None:
        self._storage = storage
        self._ref = ref
        self._exchange = exchange
        self._folder = folder
        self._files: list[FileRecord] = []
        self._fragments: list[FragmentRecord] = []
        self._kinds: dict[str, set[str]] = {}
        self._not_finite: set[str] = set()

    def write(self, snapshot: Snapshot) -> _RankReport:
        weights = _FileSplitter(weights_file, self._exchange, self._write_tensors)
        moments = _FileSplitter(optimizer_file, self._exchange, self._write_tensors)
        for piece in _pieces(snapshot.fragments, snapshot.parameters):
            if not all(bool(fragment.values.isfinite().all()) for fragment in piece):
                self._not_finite.add(piece[0].name)
            for splitter, weight in ((weights, True), (moments, False)):
                mine = [f for f in piece if (f.kind in WEIGHT_KINDS) == weight]
                if mine:
                    file = splitter.add(mine)
                    head = mine[0]
                    self._fragments.append(
                        FragmentRecord(head.name, head.start, head.values.numel(), file)
                    )
                    self._kinds.setdefault(head.name, set()).update(f.kind for f in mine)
        weights.flush()
        moments.flush()
        rank = self._exchange.rank
        if snapshot.rng is not None:
            self._write_bytes(rng_file(rank), canonical_json(snapshot.rng))
        if rank == 0 and snapshot.state is not None:
            self._write_bytes(STATE, snapshot.state.to_json())
        kinds = {name: tuple(k for k in KINDS if k in found) for name, found in self._kinds.items()}
        bad = tuple(sorted(self._not_finite))
        return _RankReport(rank, tuple(self._files), tuple(self._fragments), kinds, bad)

    def _write_tensors(self, name: str, tensors: dict[str, Tensor]) -> None:
        path = self._folder / name
        write_tensors(path, tensors)
        self._upload(path)

    def _write_bytes(self, name: str, data: bytes) -> None:
        path = self._folder / name
        path.write_bytes(data)
        self._upload(path)

    def _upload(self, path: Path) -> None:
        receipt = self._storage.upload(path, self._ref.file(path.name))
        path.unlink()
        self._files.append(
            FileRecord(path.name, receipt.size_bytes, receipt.piece_bytes, receipt.sha256)
        )


class _FileSplitter:
    """Collects tensors and writes them to files of about FILE_LIMIT_BYTES."""

    def __init__(
        self,
        name_of: Callable[[int, int, int], str],
        exchange: Exchange,
        write: Callable[[str, dict[str, Tensor]], None],
    ) -> None:
        self._name_of = name_of
        self._exchange = exchange
        self._write = write
        self._cut = 0
        self._tensors: dict[str, Tensor] = {}
        self._size_bytes = 0

    def add(self, fragments: list[Fragment]) -> str:
        """Put the kinds of one piece into the same file; returns its name."""
        size_bytes = sum(fragment.values.nbytes for fragment in fragments)
        if self._tensors and self._size_bytes + size_bytes > FILE_LIMIT_BYTES:
            self.flush()
        for fragment in fragments:
            self._tensors[tensor_key(fragment.kind, fragment.name, fragment.start)] = (
                fragment.values
            )
        self._size_bytes += size_bytes
        return self._file_name()

    def flush(self) -> None:
        """Write what was collected, if anything was."""
        if self._tensors:
            tensors, self._tensors, self._size_bytes = self._tensors, {}, 0
            self._write(self._file_name(), tensors)
            self._cut += 1

    def _file_name(self) -> str:
        return self._name_of(self._exchange.rank, self._exchange.world_size, self._cut)


def _pieces(
    fragments: Iterable[Fragment], parameters: Mapping[str, ParameterInfo]
) -> Iterator[list[Fragment]]:
    """Group the kinds of one (name, start)."""
    piece: list[Fragment] = []
    for fragment in fragments:
        assert fragment.name in parameters, fragment.name
        assert fragment.kind in KINDS, fragment.kind
        assert fragment.values.dim() == 1, "fragments are flat"
        if piece and (piece[0].name, piece[0].start) != (fragment.name, fragment.start):
            yield piece
            piece = []
        assert not piece or piece[0].values.numel() == fragment.values.numel()
        piece.append(fragment)
    if piece:
        yield piece


def _assemble(
    identity: CheckpointIdentity, snapshot: Snapshot, reports: list[_RankReport], where: str
) -> CheckpointManifest:
    failed = [report for report in reports if report.failure is not None]
    if failed:
        raise RetryableError(
            f"rank {failed[0].rank} could not write its files: {failed[0].failure}",
            where=where,
            fix="the previous checkpoint stays the newest; look at that rank's log",
        )
    _check_finite(reports, where)
    kinds: dict[str, set[str]] = {name: set() for name in snapshot.parameters}
    for report in reports:
        for name, found in report.kinds.items():
            kinds[name].update(found)
    manifest = CheckpointManifest(
        identity=identity,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        files=tuple(
            sorted((file for each in reports for file in each.files), key=lambda file: file.name)
        ),
        parameters={
            name: ParameterRecord(
                tuple(info.shape), info.group, tuple(k for k in KINDS if k in kinds[name])
            )
            for name, info in snapshot.parameters.items()
        },
        fragments=tuple(sorted(fragment for each in reports for fragment in each.fragments)),
    )
    bare = [name for name, record in manifest.parameters.items() if not record.kinds]
    if bare and manifest.parameters[bare[0]].numel:
        raise CheckpointError(
            f"no rank saved parameter {bare[0]!r}",
            where=where,
            fix="report this as a bug",
        )
    manifest.check(where)
    return manifest


def _check_finite(reports: list[_RankReport], where: str) -> None:
    """Such a checkpoint would be the newest, and every start from it would be lost."""
    names = sorted({name for report in reports for name in report.not_finite})
    if names:
        raise CheckpointError(
            f"{len(names)} parameters hold NaN or infinity, so they are not saved; the first: "
            f"{', '.join(names[:3])}",
            where=where,
            fix="the checkpoint before it is the newest; start again with a lower lr, or with "
            "gradient_clipping",
        )


def _publish(storage: Storage, ref: CheckpointRef, manifest: CheckpointManifest) -> None:
    """Compare the records with a listing, then write the manifest and read it back."""
    found = {entry.key: entry.size_bytes for entry in storage.list(f"{ref.folder}/")}
    expected = {ref.file(file.name): file.size_bytes for file in manifest.files}
    for key, size_bytes in expected.items():
        if found.get(key) != size_bytes:
            raise CheckpointError(
                f"wrote {size_bytes} bytes, the listing shows {found.get(key, 'none')}",
                where=f"{storage.url}/{key}",
                fix="another process writes here; give each run its own id",
            )
    where = f"{storage.url}/{ref.manifest}"
    data = manifest.to_json(where)
    storage.write_small(ref.manifest, data)
    if storage.read_small(ref.manifest) != data:
        raise CheckpointError(
            "the manifest differs when it is read back",
            where=where,
            fix="another process writes here; give each run its own id",
        )
