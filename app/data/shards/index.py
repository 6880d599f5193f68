"""Where each sample of a shard is: a walk over tar headers, and the index that is kept of it.

A sample is the members that share a key: the member's name up to the first dot of its base name;
the rest, in lower case, is the suffix (webdataset's convention). Readers go by this index, so a
shard that was cut or replaced is noticed and never read as a shorter one. Nothing is extracted.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple, cast

from app.data.json_files import parsed
from app.errors import DataError

INDEX_VERSION = 1
VIDEO = "mp4"
LONGEST_NAME = 255
LARGEST_MEMBER_BYTES = 512 << 20
_NAME = re.compile(r"((?:.*/|)[^./][^./]*)[.]([^/]*)", re.DOTALL)
# What a desktop leaves beside files: ._a.mp4, .DS_Store, __MACOSX/; `.` and `..` are not names.
_HIDDEN = re.compile(r"(?:.*/)?(?:__MACOSX|[.](?![.]?(?:/|$))[^/]*)(?:/.*)?", re.DOTALL)
_READ_BYTES = 16 << 10  # one ranged read covers a header and the small members behind it
_TAIL_BYTES = 64 << 10
_LARGEST_HEADER = 1 << 20  # an extended header holds names and numbers
_BLOCK = 512


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
            if content["format_version"] != INDEX_VERSION:
                raise ValueError(f"format_version {content['format_version']}")
            members = tuple(
                Member(str(key), str(suffix), int(offset), int(size))
                for key, suffix, offset, size in content["members"]
            )
            left_out = tuple((str(key), str(reason)) for key, reason in content["left_out"])
            return cls(members, left_out)

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
        headers = cast(BinaryIO, _Headers(file))  # tarfile asks for no other method
        with tarfile.open(fileobj=headers, mode="r:") as archive:
            for info in archive:
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
    for key, suffixes in members.items():
        if VIDEO not in suffixes:
            bad.setdefault(key, "no_video")
    kept = tuple(
        member for key, parts in members.items() if key not in bad for member in parts.values()
    )
    return ShardIndex(kept, tuple(bad.items())), damage


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
    """The file as tarfile sees it, which would read as much as a garbled header says."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)


def _add(info: tarfile.TarInfo, members: dict[str, dict[str, Member]], bad: dict[str, str]) -> None:
    if info.isdir():
        return
    match = _NAME.fullmatch(info.name)
    key, suffix = (match[1], match[2].lower()) if match else (info.name, "")
    if not safe_name(info.name):
        bad[_printable(key)] = "unsafe_name"
    elif _HIDDEN.fullmatch(info.name):
        return  # not a member of a sample
    elif not info.isreg():
        bad[key] = "not_a_file"  # a link or device
    elif match is None:
        return  # no suffix: not a member of a sample either
    elif suffix in members.setdefault(key, {}):
        bad[key] = "duplicate_key"
    elif info.size > LARGEST_MEMBER_BYTES:
        bad[key] = "too_large"
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
        fix="upload it again, or leave it out of the dataset",
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
