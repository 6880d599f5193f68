"""The samples of a folder of videos and captions, for a check, and what is wrong with its names."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from app.data.check.sample import Problem, Sample
from app.data.shards.manifest import MANIFEST_NAME
from app.data.shards.urls import SUFFIX
from app.data.sources.sft import LABELS, VIDEO_SUFFIX, VIDEOS, is_video, label_key
from app.data.video.clip import caption_text
from app.storage.objects import Entry, Storage
from app.storage.opening import is_remote

OTHER_VIDEOS = (
    *(".3g2", ".3gp", ".asf", ".avi", ".divx", ".f4v", ".flv", ".m1v", ".m2ts", ".m2v", ".m4v"),
    *(".mkv", ".mov", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".ogm", ".ogv", ".qt", ".rm"),
    *(".rmvb", ".vob", ".webm", ".wmv", ".y4m"),
)
PERHAPS_VIDEOS = (".gif", ".ts")  # also images of a README, and source code
# Texts that are found with videos and are not captions.
NO_CAPTIONS = (
    *("authors", "captions", "changelog", "copying", "licence", "license", "metadata", "notice"),
    *("prompts", "readme", "videos"),
)


def holds_shards(entries: Mapping[str, Entry], within: str) -> bool:
    """Whether a folder is a dataset of shards; videos that belong to a dataset count against it."""
    shards = _shards(entries)
    return bool(shards) and (MANIFEST_NAME in entries or len(shards) > len(_clips(entries, within)))


def mixed(url: str, entries: Mapping[str, Entry], within: str, *, is_shards: bool) -> list[Problem]:
    """The files of the kind that is not read, as one problem; empty where there is one kind."""
    shards = _shards(entries)
    clips = _clips(entries, within)
    if not shards or not clips:
        return []
    left, kind, other = (clips, "videos", "shards") if is_shards else (shards, "shards", "videos")
    detail = f"{len(left)} {kind} are among the {other} of this dataset and were not checked"
    return [Problem(url, left[0], "mixed_layout", detail)]


def folder_samples(
    storage: Storage, entries: Mapping[str, Entry], within: str
) -> tuple[list[Sample], list[Problem]]:
    """The samples of a folder, and the names from which none comes.

    Args:
        entries: everything below the folder, by key.
        within: prefix of the videos.
    """
    keys = [key for key in sorted(entries) if is_video(key, within)]
    others = [key for key in sorted(entries) if _is_other_video(key, entries)]
    lost = unreadable(storage, within, VIDEO_SUFFIX)
    labels = {label_key(key) for key in keys}
    labels |= {_other_label(key) for key in others}
    labels |= {label_key(problem.key) for problem in lost}
    detail = f"only files that end in {VIDEO_SUFFIX} are read"
    problems = [Problem(storage.url, key, "unsupported_suffix", detail) for key in others]
    problems += lost
    problems += [
        Problem(storage.url, key, "no_video", "this caption has no video")
        for key in _captions(entries, labels)
        if key not in labels
    ]

    def words(key: str) -> str | None:
        label = label_key(key)
        return caption_text(storage.read_small(label)) if label in entries else None

    samples = [
        Sample(
            source=storage.url,
            key=key,
            size_bytes=entries[key].size_bytes,
            video=partial(storage.read_small, key),
            caption=partial(words, key),
        )
        for key in keys
    ]
    return samples, problems


def unreadable(storage: Storage, within: str, suffix: str) -> list[Problem]:
    """Names of a local folder that no listing shows: links to nothing, pipes, devices."""
    if is_remote(storage.url):
        return []
    root = Path(storage.url)
    found = []
    for folder, _, names in os.walk(root / within):
        for name in names:
            path = Path(folder) / name
            if name.endswith(suffix) and not _is_file(path):
                what = "a link to nothing" if path.is_symlink() else "not a regular file"
                key = path.relative_to(root).as_posix()
                found.append(Problem(storage.url, key, "unreadable", f"this is {what}"))
    return sorted(found, key=lambda problem: problem.key)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # links in a circle
        return False


def _shards(entries: Mapping[str, Entry]) -> Sequence[str]:
    """The shards, without those that were packed from the videos into a folder of their own."""
    tars = [key for key in sorted(entries) if key.endswith(SUFFIX)]
    if any(VIDEOS in key.split("/")[:-1] for key in entries):
        return [key for key in tars if not _is_packed_below(key, entries)]
    return tars


def _is_packed_below(key: str, entries: Mapping[str, Entry]) -> bool:
    folder, slash, _ = key.rpartition("/")
    return bool(slash) and f"{folder}/{MANIFEST_NAME}" in entries


def _clips(entries: Mapping[str, Entry], within: str) -> Sequence[str]:
    """Videos that are placed or captioned as those of a dataset; one of a README is not."""
    return [
        key
        for key in sorted(entries)
        if is_video(key, within) and (VIDEOS in key.split("/")[:-1] or label_key(key) in entries)
    ]


def _captions(entries: Mapping[str, Entry], labels: set[str]) -> list[str]:
    """Texts where captions belong: in labels/, or in a folder of captions of videos."""
    homes = {label.rpartition("/")[0] for label in labels}
    has_videos = any(VIDEOS in key.split("/")[:-1] for key in entries)
    found = []
    for key in sorted(entries):
        folder, _, name = key.rpartition("/")
        stem, dot, suffix = name.rpartition(".")
        if not dot or suffix != "txt" or name.startswith("."):
            continue
        in_labels = has_videos and LABELS in folder.split("/")
        if in_labels or (folder in homes and stem.lower() not in NO_CAPTIONS):
            found.append(key)
    return found


def _is_other_video(key: str, entries: Mapping[str, Entry]) -> bool:
    """Whether a file is a video whose name does not end as those that are read."""
    kind = Path(key).suffix
    if kind == VIDEO_SUFFIX:
        return False
    kind = kind.lower()
    if kind in PERHAPS_VIDEOS:
        return VIDEOS in key.split("/")[:-1] or _other_label(key) in entries
    return kind == VIDEO_SUFFIX or kind in OTHER_VIDEOS


def _other_label(key: str) -> str:
    return label_key(key.removesuffix(Path(key).suffix) + VIDEO_SUFFIX)
