"""Where each sample of a shard is: a walk over tar headers, and the index that is kept of it.

A sample is the members that share a key: the member's name up to the first dot of its base name;
the rest, in lower case, is the suffix (webdataset's convention). One of them is a video. Readers
go by this index, so a shard that was cut or replaced is noticed and never read as a shorter one.
Nothing is extracted.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple, cast

from app.data.json_files import parsed
from app.data.left_out import (
    DOTS,
    DUPLICATE,
    NO_VIDEO,
    NOT_A_FILE,
    TOO_LARGE,
    TWO_VIDEOS,
    UNSAFE,
    UNSUPPORTED,
)
from app.data.names import (
    OTHER_VIDEOS,
    PERHAPS_VIDEOS,
    VIDEO_SUFFIXES,
    is_hidden,
    normal_form,
)
from app.errors import DataError

# Version 1 knew videos called .mp4 only: where it left samples out, its shard is looked at again.
INDEX_VERSION, MP4_VERSION = 2, 1
VIDEO_KINDS = frozenset(suffix.removeprefix(".") for suffix in VIDEO_SUFFIXES)
_UNREAD_KINDS = frozenset(suffix.removeprefix(".") for suffix in (*OTHER_VIDEOS, *PERHAPS_VIDEOS))
LONGEST_NAME = 255
LARGEST_MEMBER_BYTES = 512 << 20
_NAME = re.compile(r"((?:.*/|)[^./][^./]*)[.]([^/]*)", re.DOTALL)
_READ_BYTES = 16 << 10  # one ranged read covers a header and the small members behind it
_TAIL_BYTES = 64 << 10
_MOST_READS = 200  # for one member: an ordinary one takes three, one with a long name seven
_LARGEST_HEADER = 1 << 20  # an extended header holds names and numbers
_BLOCK = 512
_TAR_MAGIC = slice(257, 262)
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ\x00": "xz",
    b"BZh": "bzip2",
    b"\x04\x22\x4d\x18": "lz4",
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf\x27\x1c": "7z",
}


class Member(NamedTuple):
    """One file of a sample: `size` bytes at `offset` of the shard."""

    key: str
    suffix: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """The usable samples of a shard, in the order of the tar, and what was left out and why."""

    members: tuple[Member, ...]
    left_out: tuple[tuple[str, str], ...]  # (key or name, reason)
    version: int = field(default=INDEX_VERSION, compare=False)

    @property
    def is_outdated(self) -> bool:
        """Whether a sample that was left out may be read today."""
        without = (reason == NO_VIDEO for _, reason in self.left_out)
        return self.version == MP4_VERSION and any(without)

    def samples(self) -> list[dict[str, Member]]:
        """One mapping from suffix to member per sample."""
        grouped: dict[str, dict[str, Member]] = {}
        for member in self.members:
            grouped.setdefault(member.key, {})[member.suffix] = member
        return list(grouped.values())

    def to_json(self, shard: str) -> bytes:
        """The side file, the same bytes for the same shard."""
        content = {
            "format_version": INDEX_VERSION,
            "shard": shard,
            "members": self.members,
            "left_out": self.left_out,
        }
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes, where: str) -> ShardIndex:
        """Read a side file; DataError when it is not one."""

        def parse(content: Mapping[str, Any]) -> ShardIndex:
            version = content["format_version"]
            if version not in (INDEX_VERSION, MP4_VERSION):
                raise ValueError(f"format_version {version}")
            members = tuple(
                Member(str(key), str(suffix), int(offset), int(size))
                for key, suffix, offset, size in content["members"]
            )
            left_out = tuple((str(key), str(reason)) for key, reason in content["left_out"])
            return cls(members, left_out, version)

        return parsed(
            data,
            parse,
            what="this is not the index of a shard",
            where=where,
            fix="delete it and dataset.manifest.json: the next run makes them again",
        )


def index_digest(index: ShardIndex) -> str:
    """sha256 of the members: changes when any sample of the shard moves or changes its size."""
    return hashlib.sha256(json.dumps(index.members).encode()).hexdigest()


def index_shard(file: BinaryIO, size: int, where: str) -> ShardIndex:
    """Walk the headers of an uncompressed tar file.

    Args:
        file: seekable; only headers are read.
        size: bytes of the whole file.
        where: the shard's URL, for messages.

    Raises:
        DataError: the file is not a tar file, or was cut or damaged.
    """
    index, damage = walk_shard(file, size)
    if damage is not None:
        raise _damaged(where, damage)
    return index


def walk_shard(file: BinaryIO, size: int) -> tuple[ShardIndex, str | None]:
    """As `index_shard`, but a damaged shard gives what is before the damage, and its kind.

    The damaged sample is not among them.
    """
    members: dict[str, dict[str, Member]] = {}
    bad: dict[str, str] = {}
    damage: str | None = None
    try:
        headers = _Headers(file)
        # tarfile asks for no other method.
        with tarfile.open(fileobj=cast(BinaryIO, headers), mode="r:") as archive:
            for info in archive:
                headers.reads = 0
                if info.size < 0:
                    raise tarfile.ReadError(f"'{info.name}' has {info.size} bytes")
                if info.offset_data + info.size > size:
                    raise tarfile.ReadError(f"'{info.name}' is cut")
                _add(info, members, bad)
            damage = _behind_the_last(file, archive.offset)
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as problem:
        damage = str(problem)
    if damage is not None and members:
        last = next(reversed(members))
        del members[last]
        bad.pop(last, None)
    if damage is not None and not members:
        damage = _compression(file) or damage
    _join_normal_forms(members)
    kept: list[Member] = []
    for key, parts in members.items():
        videos = sum(suffix in VIDEO_KINDS for suffix in parts)
        if videos == 1 and key not in bad:
            kept += parts.values()
        for name, reason in _faults(key, parts, videos).items():
            bad.setdefault(name, reason)
    return ShardIndex(tuple(kept), tuple(bad.items())), damage


def video_of(sample: Mapping[str, Member]) -> Member:
    """The one video of a sample of an index."""
    return next(member for suffix, member in sample.items() if suffix in VIDEO_KINDS)


def _faults(key: str, parts: Mapping[str, Member], videos: int) -> dict[str, str]:
    """What is left out of the members of a key: reasons by the key or the name to list."""
    dotted = [one for one in parts if "." in one and one.rpartition(".")[2] in VIDEO_KINDS]
    if videos == 1:
        # A view of this sample, or a clip of its own? A caption of its own says the latter.
        dotted = [one for one in dotted if f"{one.rpartition('.')[0]}.txt" in parts]
    if videos > 1:
        return {key: TWO_VIDEOS}
    if dotted or videos:
        return {f"{key}.{one}": DOTS for one in dotted}
    kinds = {suffix.rpartition(".")[2] for suffix in parts}
    return {key: UNSUPPORTED if kinds & _UNREAD_KINDS else NO_VIDEO}


def _join_normal_forms(members: dict[str, dict[str, Member]]) -> None:
    """Give members to the video whose key is the same in another normal form.

    macOS writes names apart (NFD) that other systems write as one sign.
    """
    videos = {
        normal_form(key): key
        for key, parts in members.items()
        if not key.isascii() and not VIDEO_KINDS.isdisjoint(parts)
    }
    for key in [key for key in members if not key.isascii()]:
        own = videos.get(normal_form(key), key)
        if own != key and VIDEO_KINDS.isdisjoint(members[key]):
            for suffix, member in members.pop(key).items():
                members[own].setdefault(suffix, member._replace(key=own))


def _compression(file: BinaryIO) -> str | None:
    """How a file that is not a tar file is compressed, if it is."""
    file.seek(0)
    head = file.read(_BLOCK)
    if head[_TAR_MAGIC] == b"ustar":
        return None
    kinds = (kind for magic, kind in _COMPRESSED.items() if head.startswith(magic))
    kind = next(kinds, None)
    return None if kind is None else f"it is compressed ({kind})"


def _behind_the_last(file: BinaryIO, end: int) -> str | None:
    """What is wrong with the rest of the file: the end is a block of zeros, then only zeros.

    tarfile takes a damaged header for the end, and one of zeros too: what follows would be lost.
    """
    file.seek(end)
    mark = file.read(_BLOCK)
    if len(mark) < _BLOCK or any(mark):
        return f"no end-of-archive mark at byte {end}, so it was cut or garbled"
    while piece := file.read(_TAIL_BYTES):
        if piece.count(0) < len(piece):
            return f"data follows the end-of-archive mark at byte {end}, so samples may be lost"
    return None


class _Headers:
    """The file as tarfile sees it.

    tarfile would read as much as a garbled header says, and calls itself for each header that
    describes the next one, without end. `reads` counts those since the last member.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.reads = 0
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        self.reads += 1
        if self.reads > _MOST_READS:
            raise tarfile.ReadError("too many headers that describe the next header")
        return self._file.read(size)


def _add(info: tarfile.TarInfo, members: dict[str, dict[str, Member]], bad: dict[str, str]) -> None:
    if info.isdir():
        return
    match = _NAME.fullmatch(info.name)
    key, suffix = (match[1], match[2].lower()) if match else (info.name, "")
    if not safe_name(info.name):
        bad[_printable(key)] = UNSAFE
    elif is_hidden(info.name):
        return  # not a member of a sample
    elif not info.isreg():
        bad[key] = NOT_A_FILE  # a link or device
    elif match is None:
        return  # no suffix: not a member of a sample either
    elif suffix in members.setdefault(key, {}):
        bad[key] = DUPLICATE
    elif info.size > LARGEST_MEMBER_BYTES:
        bad[key] = TOO_LARGE
    else:
        members[key][suffix] = Member(key, suffix, info.offset_data, info.size)


def _printable(key: str) -> str:
    """A name of bytes that are no UTF-8, as text that can be written down."""
    return key[:LONGEST_NAME].encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def safe_name(name: str) -> bool:
    """Whether a member's name stays where it is: relative, no `..`, no NUL, not too long."""
    parts = name.split("/")
    return (
        not name.startswith("/")
        and ".." not in parts
        and "\x00" not in name
        and "\\" not in name
        and len(name.encode("utf-8", "surrogateescape")) <= LONGEST_NAME
        and name.isprintable()
    )


def _damaged(where: str, detail: str) -> DataError:
    return DataError(
        f"the shard is damaged or not an uncompressed tar file: {detail}",
        where=where,
        fix="upload it again (uncompressed), or leave it out of the dataset",
    )


class RangeFile(io.RawIOBase):
    """A file of which only the asked pieces are read, by `read(start, stop) -> bytes`."""

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self._read = read
        self._size = size
        self._position = 0
        self._start, self._piece = 0, b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = max(self._size - self._position, 0)
        size = left if size < 0 else min(size, left)
        at = self._position - self._start
        if at < 0 or at + size > len(self._piece):
            stop = min(self._position + max(size, _READ_BYTES), self._size)
            self._start, at = self._position, 0
            self._piece = self._read(self._position, stop) if stop > self._position else b""
        self._position += size
        return self._piece[at : at + size]
