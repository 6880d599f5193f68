"""What a file is by its first bytes, for the message when it is not what its name says."""

from __future__ import annotations

from typing import NamedTuple

PREFIX_BYTES = 8


class FileKind(NamedTuple):
    """`what` the file is, and how to get (`fix`) what was meant."""

    what: str
    fix: str


LFS_POINTER = FileKind(
    "a pointer of Git LFS, not the file itself", "run `git lfs pull` in the repository it is from"
)
WEB_PAGE = FileKind(
    "a web page, not the file itself", "download it again; the address may ask for an account"
)
GZIP = FileKind("compressed with gzip", "unpack it first")
ZIP = FileKind("a zip archive or a torch file", "convert or unpack it first")
PICKLE = FileKind("a Python pickle", "convert it first: `cogvx convert --help`")

_BY_PREFIX = {
    b"version ": LFS_POINTER,
    b"<!": WEB_PAGE,
    b"<h": WEB_PAGE,
    b"<?": WEB_PAGE,
    b"\x1f\x8b": GZIP,
    b"PK\x03\x04": ZIP,
    b"\x80\x02": PICKLE,
}


def apparent_kind(prefix: bytes) -> FileKind | None:
    """The kind of a file that begins with `prefix` (PREFIX_BYTES of it); None: not known."""
    begins = (kind for start, kind in _BY_PREFIX.items() if prefix.startswith(start))
    return next(begins, None)
