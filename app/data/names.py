"""What the names of files say: a video, a hidden file, a name that cannot be used.

One home for these rules: folders, shards, their members, side files and addresses all ask here.
The suffix says only that a file is a video; how it is read follows from its content.
"""

from __future__ import annotations

import re
import unicodedata

from app.errors import ConfigError, DataError
from app.storage.objects import check_key

UPSTREAM_SUFFIX = ".mp4"  # exactly: upstream leaves .MP4 and other kinds out
VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg")
OTHER_VIDEOS = (
    *(".3g2", ".3gp", ".asf", ".divx", ".f4v", ".flv", ".m1v", ".m2ts", ".m2v", ".mpe", ".mts"),
    *(".mxf", ".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".vob", ".wmv", ".y4m"),
)
PERHAPS_VIDEOS = (".gif", ".ts")  # also images of a README, and source code
# Folders that systems make beside files; everything that begins with a dot is hidden too.
SYSTEM_FOLDERS = frozenset(
    ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found")
)
_SHARD_LIKE = re.compile(
    r".*\.(?:tar|(?:tar\.|t)(?P<kind>gz|bz2?|xz|zst|lz4|lzma|z)|tbz2|taz)", re.IGNORECASE
)
SHARD_SUFFIX = ".tar"


def suffix_of(name: str) -> str:
    """What follows the last dot of a file name, with the dot, in lower case; "" without one."""
    stem, dot, kind = name.rpartition("/")[2].rpartition(".")
    return f".{kind.lower()}" if dot and stem else ""


def is_video_name(name: str, *, upstream: bool = False) -> bool:
    """Whether a file is read as a video; upstream takes `.mp4` alone, in this spelling."""
    if upstream:
        return name.endswith(UPSTREAM_SUFFIX)
    return suffix_of(name) in VIDEO_SUFFIXES


def without_suffix(name: str) -> str:
    """A name of a video without what says that it is one."""
    kind = suffix_of(name)
    known = kind in VIDEO_SUFFIXES or kind in OTHER_VIDEOS or kind in PERHAPS_VIDEOS
    return name[: -len(kind)] if known else name


def is_hidden(key: str) -> bool:
    """Whether a system or program made the file for itself: `._a.mp4`, `.Trash-0/a.mp4`.

    `.` and `..` are not names: a member `./a.mp4` is an ordinary one.
    """
    return any(
        (part.startswith(".") and part not in (".", "..")) or part in SYSTEM_FOLDERS
        for part in key.split("/")
    )


def name_fault(key: str) -> str | None:
    """Why a key of a dataset cannot be used, if so."""
    kinds = set() if key.isprintable() else {unicodedata.category(sign) for sign in key}
    if "Cs" in kinds:  # how Python reads bytes that are not UTF-8
        return "its name is not UTF-8"
    if "Cc" in kinds:
        return "its name has a control character"
    if key != key.rstrip():
        return "its name ends with a blank"
    if "\\" in key:
        return "its name has a backslash"
    if "" in key.split("/"):
        return "its name has an empty part (//)"
    try:
        check_key(key, "")
    except DataError:
        return "its name has a '.' or '..' part, or more than 1024 bytes"
    return None


def shown(key: str) -> str:
    """A name in messages: what cannot be printed is written as in Python."""
    if key.isprintable() and key == key.rstrip():
        return key
    return repr(key)


def normal_form(name: str) -> str:
    """The spelling by which names are compared: macOS takes letters and accents apart (NFD)."""
    return unicodedata.normalize("NFC", name)


def shard_fault(key: str) -> str | None:
    """Why a file that is a shard by its name is not read; None: it is read, or is none."""
    match = None if key.endswith(SHARD_SUFFIX) else _SHARD_LIKE.fullmatch(key)
    if match is None:
        return None
    if key.lower().endswith(SHARD_SUFFIX):
        return f"its name ends in {key[-len(SHARD_SUFFIX) :]}, not in {SHARD_SUFFIX}"
    return "it is compressed"


def checked_address(path: str, where: str) -> str:
    """The address of a dataset.

    Raises:
        ConfigError: it begins or ends with a blank, which no file or bucket name would show.
    """
    if path == path.strip():
        return path
    raise ConfigError(
        f"the address {path!r} begins or ends with a blank",
        where=where,
        fix=f"write {path.strip()!r}",
    )
