"""Write a folder of videos and captions as tar shards with an index and a manifest.

The only user of webdataset: its writer, so that other readers of that format find what they
expect. The same folder gives the same bytes, whoever packs it and when.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import webdataset

from app import __version__
from app.config.dataset_defaults import DEFAULT_SHARD_MIB, MOST_LEFT_OUT
from app.data.bad_clip import BadClipError
from app.data.left_out import UNUSABLE, LeftOut, summary, why
from app.data.local_files import LocalFiles
from app.data.names import checked_address, shown, suffix_of, without_suffix
from app.data.shards.index import index_shard, safe_name
from app.data.shards.index_files import IndexFiles
from app.data.shards.manifest import MANIFEST_NAME, DatasetManifest, ShardEntry, sizes_key, updated
from app.data.shards.survey import file_sha256, shard_entry
from app.data.sources.captions import CaptionFiles
from app.data.sources.folder import LABELS, VIDEOS, list_folder, split_root
from app.data.sources.settings import ERROR, SourceSettings
from app.data.video.decoder import VideoDecoder, VideoFacts
from app.data.video.sizes import ClipSize, size_of, sizes_to_json
from app.errors import ConfigError, DataError
from app.storage.objects import Entry, Storage
from app.storage.opening import is_remote, open_storage

log = logging.getLogger(__name__)

TAR_BLOCK = 512
PROBLEMS_SHOWN = 5
ALLOW_EMPTY = "give --missing-captions empty to pack '' in their place"
Progress = Callable[[int, int], None]  # (videos done, videos in all)


@dataclass(frozen=True, kw_only=True, slots=True)
class PackRules:
    """How to pack.

    `name` begins the shards' names: `<name>-000000.tar`. A shard is closed before it grows
    beyond `shard_bytes`; one longer video makes a longer shard. Nothing is written where more than
    the share `max_left_out` of the videos cannot be packed.
    """

    name: str = "clips"
    shard_bytes: int = DEFAULT_SHARD_MIB << 20
    missing_captions: str = ERROR
    max_left_out: float = MOST_LEFT_OUT
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.shard_bytes < 1 << 10:
            raise ConfigError(
                f"shards of {self.shard_bytes} bytes are too small",
                where="--shard-mib",
                fix=f"use about {DEFAULT_SHARD_MIB}",
            )


@dataclass(frozen=True, slots=True)
class PackReport:
    """What was written."""

    url: str
    shards: int
    samples: int
    bytes: int
    manifest: str
    left_out: int = 0  # videos of the folder that are in no shard
    left_out_why: str = ""  # their reasons and first names


@dataclass(frozen=True, slots=True)
class _Clip:
    """One sample on its way into a shard."""

    key: str
    kind: str  # suffix of the video, in lower case
    video: bytes
    caption: str
    facts: VideoFacts

    def members(self) -> dict[str, bytes | str]:
        """The sample as webdataset's writer takes it."""
        shown = self.facts
        description = {
            "fps": round(shown.fps, 6),
            "num_frames": shown.frames,
            "width": shown.header.columns,
            "height": shown.header.rows,
            "duration": round(shown.header.duration_s, 6),
            "codec": shown.header.codec,
            "caption_sha256": hashlib.sha256(self.caption.encode()).hexdigest(),
            "video_sha256": hashlib.sha256(self.video).hexdigest(),
        }
        return {
            "__key__": self.key,
            "json": json.dumps(description, sort_keys=True).encode(),
            self.kind: self.video,
            "txt": self.caption.encode(),
        }


def pack(
    folder: str, out: str, rules: PackRules, progress: Progress = lambda done, total: None
) -> PackReport:
    """Read every video below `folder` and write shards to `out`.

    Args:
        folder: videos/ and labels/ as SFTSource reads them; local or s3://.
        out: folder or s3:// prefix; the manifest is written last.
        rules: names, sizes, captions.
        progress: called after every video.

    Raises:
        InputMissingError: no video.
        DataError: captions that are missing, or more videos that cannot be packed than
            `rules.max_left_out` allows.
        ConfigError: `out` holds a dataset already and `overwrite` is off, or is part of `folder`.
    """
    target = open_storage(checked_address(out, "--out"))
    _check_apart(folder, target)
    old = _old_manifest(target, rules)
    clips = _Clips(folder, rules)
    clips.check_left_out()
    if old is not None:
        target.delete([MANIFEST_NAME])  # first: a half-written dataset has none
    with tempfile.TemporaryDirectory(prefix="cogvx-pack-") as scratch:
        shards = _write_shards(clips.read(progress), target, rules, Path(scratch))
    listed = {entry.key: entry for entry in target.list()}
    manifest = DatasetManifest(
        tuple(updated(shard, listed[shard.name]) for shard in shards), f"cogvx {__version__}"
    )
    _delete_old(target, old, manifest)
    target.write_small(MANIFEST_NAME, manifest.to_json())
    return PackReport(
        url=target.url,
        shards=len(shards),
        samples=sum(shard.samples for shard in shards),
        bytes=sum(shard.bytes for shard in shards),
        manifest=f"{target.url}/{MANIFEST_NAME}",
        left_out=len(clips.left_out),
        left_out_why=clips.why_left_out() if clips.left_out else "",
    )


def _check_apart(folder: str, target: Storage) -> None:
    """Refuse to write shards among the videos that they are made of."""
    root, _ = split_root(folder)
    source, written = _canonical(open_storage(root).url), _canonical(target.url)
    # Each may be a link to another place.
    parts = tuple(f"{_canonical(f'{source}/{name}')}/" for name in (VIDEOS, LABELS))
    if written == source or f"{written}/".startswith(parts):
        raise ConfigError(
            "the shards would be among the videos that they are made of",
            where=target.url,
            fix="name another folder or prefix with --out",
        )


def _canonical(url: str) -> str:
    """A URL or path, the same for the same place."""
    return (url if is_remote(url) else os.path.realpath(url)).rstrip("/")


class _Clips:
    """The videos of a folder, each read, checked and described; `left_out` are those that are not.

    Raises:
        InputMissingError: no video.
        DataError: captions that are missing or cannot be read.
    """

    def __init__(self, folder: str, rules: PackRules) -> None:
        found = list_folder(folder)
        if not found.videos:
            raise found.no_videos(folder, "they are packed already")
        self._rules = rules
        self._storage, entries = found.storage, found.entries
        self._keys = found.videos
        self.left_out = list(found.left_out)
        self._details = {one.key: why(one) for one in found.left_out}
        settings = SourceSettings(missing_captions=rules.missing_captions)
        is_local = not is_remote(self._storage.url)
        self._files = LocalFiles(self._storage, entries, None) if is_local else None
        self._captions = CaptionFiles(self._storage, entries, settings)
        self._captions.check(self._keys, ALLOW_EMPTY)
        self._names = self._sample_names()

    def read(self, progress: Progress) -> Iterator[_Clip]:
        """Each clip that can be packed; DataError at the end where too many cannot."""
        decoder = VideoDecoder()
        try:
            for done, key in enumerate(self._keys):
                progress(done, len(self._keys))
                try:
                    clip = self._clip(decoder, key) if key in self._names else None
                except BadClipError as problem:
                    self._leave_out(key, problem.reason, problem.detail)
                    continue
                if clip is not None and not self._are_too_many():  # else only look on
                    yield clip
            progress(len(self._keys), len(self._keys))
        finally:
            decoder.close()
        self.check_left_out()

    def check_left_out(self) -> None:
        """Raise DataError where too large a share of the videos cannot be packed; names them."""
        if not self._are_too_many():
            return
        shown_first = "; ".join(
            f"{shown(one.key)} ({one.reason}: {self._details[one.key]})"
            for one in self.left_out[:PROBLEMS_SHOWN]
        )
        more = len(self.left_out) - PROBLEMS_SHOWN
        share = self._rules.max_left_out
        raise DataError(
            f"{len(self.left_out)} of {self._total} videos cannot be used: {shown_first}"
            + (f"; and {more} more" if more > 0 else ""),
            where=self._storage.url,
            fix=f"repair or remove them, then pack again; --max-left-out ({share:g}) is the share "
            "that may be left out",
        )

    def why_left_out(self) -> str:
        """One line for people."""
        return summary(self.left_out, self._total - len(self.left_out))

    @property
    def _total(self) -> int:
        """Videos of the folder, whether they can be read or not."""
        unlisted = sum(1 for one in self.left_out if one.key not in self._known)
        return len(self._keys) + unlisted

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self._keys)

    def _are_too_many(self) -> bool:
        count, total = len(self.left_out), self._total
        return count > self._rules.max_left_out * total or count == total

    def _leave_out(self, key: str, reason: str, detail: str) -> None:
        self.left_out.append(LeftOut("", key, reason))
        self._details[key] = detail

    def _clip(self, decoder: VideoDecoder, key: str) -> _Clip:
        video = (self._files.read if self._files else self._storage.read_small)(key)
        kind = suffix_of(key).removeprefix(".")
        return _Clip(self._names[key], kind, video, self._captions.read(key), decoder.probe(video))

    def _sample_names(self) -> dict[str, str]:
        """A tar name for each video: its path, with nothing that webdataset would take apart.

        Raises:
            DataError: two videos would get the same name.
        """
        names: dict[str, str] = {}
        taken: dict[str, str] = {}
        for key in self._keys:
            path = PurePosixPath(key)
            # The key of a sample ends at the first dot of the base name.
            name = (path.parent / without_suffix(path.name).replace(".", "_")).as_posix()
            name = name.removeprefix(f"{VIDEOS}/")
            name = "".join(sign if sign.isprintable() else "_" for sign in name)
            if not safe_name(f"{name}.json"):
                self._leave_out(key, UNUSABLE, "its name is too long for a tar file")
                continue
            if name in taken:
                raise DataError(
                    f"two videos would be named '{name}'",
                    where=f"{taken[name]} {key}",
                    fix="rename the video",
                )
            taken[name], names[key] = key, name
        return names


def _write_shards(
    clips: Iterator[_Clip], target: Storage, rules: PackRules, scratch: Path
) -> list[ShardEntry]:
    """Write, index and upload shards one after another; on an error none of them is left."""
    shards: list[ShardEntry] = []
    files = IndexFiles(target, scratch)
    sizes: list[ClipSize] = []  # of the videos in the shard that is being written

    def finish(path: Path) -> None:
        shard = _publish(path, target, files)
        shards.append(shard)
        files.write(sizes_key(shard.name), sizes_to_json(sizes, shard.index_sha256))
        sizes.clear()
        path.unlink()

    writer: webdataset.TarWriter | None = None
    path, size = scratch, 0
    try:
        for clip in clips:
            members = clip.members()
            more = _tar_bytes(members)
            if writer is not None and size + more > rules.shard_bytes:
                writer.close()
                finish(path)
                writer = None
            if writer is None:
                path = scratch / f"{rules.name}-{len(shards):06d}.tar"
                # mtime and owner fixed: the same folder gives the same bytes.
                writer = webdataset.TarWriter(
                    str(path), user="cogvx", group="cogvx", mtime=0.0, encoder=False
                )
                size = 2 * TAR_BLOCK
            writer.write(members)
            sizes.append(size_of(clip.facts))
            size += more
        if writer is not None:
            writer.close()
            finish(path)
    except BaseException:
        target.delete([key for shard in shards for key in _keys_of(shard)])
        raise
    return shards


def _publish(path: Path, target: Storage, files: IndexFiles) -> ShardEntry:
    size = path.stat().st_size
    with path.open("rb") as file:
        index = index_shard(file, size, path.name)
    entry = Entry(path.name, size, None, None)
    shard = shard_entry(entry, index, "txt", file_sha256(path))
    target.upload(path, path.name)
    files.write(shard.index, index.to_json(path.name))
    log.info("shard written", extra={"shard": path.name, "bytes": size, "samples": shard.samples})
    return shard


def _tar_bytes(members: dict[str, bytes | str]) -> int:
    """What a sample takes in a tar file: header and padding for each member."""
    total = 0
    for name, data in members.items():
        if name != "__key__":
            total += TAR_BLOCK + -(-len(data) // TAR_BLOCK) * TAR_BLOCK
    return total


def _old_manifest(target: Storage, rules: PackRules) -> DatasetManifest | None:
    """The manifest that is there already; replaced only with --overwrite."""
    if MANIFEST_NAME not in {entry.key for entry in target.list(MANIFEST_NAME)}:
        return None
    if not rules.overwrite:
        raise ConfigError(
            "there is a dataset already",
            where=f"{target.url}/{MANIFEST_NAME}",
            fix="choose another --out, or replace it with --overwrite",
        )
    data = target.read_small(MANIFEST_NAME)
    return DatasetManifest.from_json(data, f"{target.url}/{MANIFEST_NAME}")


def _delete_old(target: Storage, old: DatasetManifest | None, new: DatasetManifest) -> None:
    """Remove shards of the replaced dataset that the new one does not have."""
    if old is not None:
        kept = set(new.by_name())
        gone = [shard for shard in old.shards if shard.name not in kept]
        target.delete([key for shard in gone for key in _keys_of(shard)])


def _keys_of(shard: ShardEntry) -> tuple[str, ...]:
    """Everything that belongs to a shard."""
    return shard.name, shard.index, sizes_key(shard.name)
