"""What a folder of videos holds: its videos, and what looks like one and is left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from app.data.left_out import UNREADABLE, UNSUPPORTED, UNUSABLE, LeftOut, summary
from app.data.local_files import unlisted
from app.data.names import (
    OTHER_VIDEOS,
    PERHAPS_VIDEOS,
    SHARD_SUFFIX,
    VIDEO_SUFFIXES,
    checked_address,
    is_hidden,
    is_video_name,
    name_fault,
    suffix_of,
    without_suffix,
)
from app.data.sources.caption_tables import TABLE_NAMES
from app.errors import InputMissingError
from app.storage.objects import Entry, Storage, stat_if_present
from app.storage.opening import open_storage

VIDEOS, LABELS = "videos", "labels"
NO_SHARDS_HINT = "set data.target to data_video.VideoDataset"


@dataclass(frozen=True, slots=True)
class VideoFolder:
    """A listed folder.

    Attributes:
        storage: the folder or prefix.
        entries: its files by key; not the hidden ones and those whose names cannot be used.
        within: prefix of the videos; "" where the whole folder is searched.
        videos: keys of what is read, in the order of their names.
        left_out: videos that are not read, by key.
    """

    storage: Storage
    entries: Mapping[str, Entry]
    within: str
    videos: tuple[str, ...]
    left_out: tuple[LeftOut, ...]

    def no_videos(self, path: str, shards_hint: str = NO_SHARDS_HINT) -> InputMissingError:
        """The error of a folder without videos, with what it holds instead."""
        shards = sum(1 for key in self.entries if key.endswith(SHARD_SUFFIX))
        hint = "check the path; videos belong in videos/, captions in labels/"
        if shards:
            hint = f"there are {shards} tar shards: {shards_hint}"
        what = f"there is no video ({' '.join(f'*{kind}' for kind in VIDEO_SUFFIXES)}) here"
        if self.left_out:
            what += f"; {summary(self.left_out, 0)}"
        return InputMissingError(what, where=path, fix=hint)


def list_folder(path: str, *, upstream: bool = False) -> VideoFolder:
    """List a dataset's folder.

    Where the folder `videos` itself is named, its captions are beside it.

    Args:
        path: a folder or prefix, also with `/videos` at its end.
        upstream: read `.mp4` only, in this spelling.

    Raises:
        ConfigError: a blank around the address, or an address of a kind that is not read.
    """
    root, within = split_root(checked_address(path, "the address of a dataset"))
    storage = open_storage(root, follow_links=True)
    listed = storage.list(within)
    if within:
        listed += storage.list(f"{LABELS}/")
        tables = (stat_if_present(storage, name) for name in TABLE_NAMES)
        listed += [table for table in tables if table is not None]
    visible = {entry.key: entry for entry in listed if not is_hidden(entry.key)}
    entries = {key: entry for key, entry in visible.items() if name_fault(key) is None}
    found = [key for key in sorted(entries) if key.startswith(within)]
    videos = tuple(key for key in found if is_video_name(key, upstream=upstream))
    others = (key for key in found if not is_video_name(key, upstream=upstream))
    left_out = [
        *(LeftOut("", key, UNSUPPORTED) for key in others if _is_other_video(key, entries)),
        *(
            LeftOut("", key, UNUSABLE)
            for key in visible.keys() - entries.keys()
            if key.startswith(within) and is_video_name(key.rstrip(), upstream=upstream)
        ),
        *(
            LeftOut("", key, UNREADABLE)
            for key in unlisted(storage, within, visible.keys())
            if is_video_name(key, upstream=upstream)
        ),
    ]
    return VideoFolder(storage, entries, within, videos, tuple(sorted(left_out)))


def split_root(path: str) -> tuple[str, str]:
    """(root, prefix of the videos): a path that ends in `videos` means that folder of its parent.

    Upstream finds labels/ beside it, because it replaces the name in the full path.
    """
    path = path.removeprefix("file://").rstrip("/") or "/"
    parent, _, name = path.rpartition("/")
    if name == VIDEOS and parent and not parent.endswith("/"):
        return parent, f"{VIDEOS}/"
    return path, ""


def label_key(key: str) -> str:
    """`a/videos/b/1.mp4` -> `a/labels/b/1.txt`; without a folder videos: beside the video."""
    parts = without_suffix(key).split("/")
    folders = parts[:-1]
    if VIDEOS in folders:
        last = len(folders) - 1 - folders[::-1].index(VIDEOS)
        folders[last] = LABELS
    return "/".join([*folders, parts[-1]]) + ".txt"


def _is_other_video(key: str, entries: Mapping[str, Entry]) -> bool:
    """Whether a file is a video of a kind that is not read."""
    kind = suffix_of(key)
    if kind in PERHAPS_VIDEOS:
        return VIDEOS in key.split("/")[:-1] or label_key(key) in entries
    return kind in VIDEO_SUFFIXES or kind in OTHER_VIDEOS
