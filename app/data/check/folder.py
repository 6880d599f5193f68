"""The samples of a folder of videos and captions, for a check, and what is wrong with its names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from app.data.check.sample import Problem, Sample
from app.data.left_out import NO_VIDEO, why
from app.data.names import SHARD_SUFFIX, is_video_name, normal_form, shown
from app.data.shards.manifest import MANIFEST_NAME
from app.data.sources.caption_tables import is_table
from app.data.sources.captions import CaptionFiles
from app.data.sources.folder import LABELS, VIDEOS, VideoFolder, label_key
from app.data.sources.settings import SourceSettings
from app.errors import DataError
from app.storage.objects import Entry

BAD_TABLE = "bad_metadata"
# Texts that are found with videos and are not captions.
NO_CAPTIONS = (
    *("authors", "captions", "changelog", "copying", "licence", "license", "metadata", "notice"),
    *("caption", "prompt", "prompts", "readme", "video", "videos"),
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
    folder: VideoFolder, settings: SourceSettings
) -> tuple[list[Sample], list[Problem]]:
    """The samples of a folder, and the names from which none comes.

    Args:
        folder: as training lists it.
        settings: rules of captions.
    """
    url, entries = folder.storage.url, folder.entries
    problems = [Problem(url, shown(one.key), one.reason, why(one)) for one in folder.left_out]
    captions = CaptionFiles(folder.storage, entries, settings)
    try:
        lost = captions.lost_rows
    except DataError as problem:
        table = problem.where.removeprefix(f"{url}/")
        problems.append(Problem(url, table, BAD_TABLE, problem.what))
        rest = {key: entry for key, entry in entries.items() if not is_table(key)}
        captions, lost = CaptionFiles(folder.storage, rest, settings), ()
    problems += [
        Problem(url, shown(row.video), NO_VIDEO, f"{row.where} names it, and it is not there")
        for row in lost
    ]
    keys = [*folder.videos, *(one.key for one in folder.left_out)]
    labels = {normal_form(label_key(key)) for key in keys}
    problems += [
        Problem(url, key, NO_VIDEO, "this caption has no video")
        for key in _captions(entries, labels)
        if normal_form(key) not in labels
    ]
    samples = [
        Sample(
            source=url,
            key=key,
            size_bytes=entries[key].size_bytes,
            video=partial(folder.storage.read_small, key),
            caption=partial(captions.text, key),
        )
        for key in folder.videos
    ]
    return samples, problems


def _shards(entries: Mapping[str, Entry]) -> Sequence[str]:
    """The shards, without those that were packed from the videos into a folder of their own."""
    tars = [key for key in sorted(entries) if key.endswith(SHARD_SUFFIX)]
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
        if key.startswith(within)
        and is_video_name(key)
        and (VIDEOS in key.split("/")[:-1] or label_key(key) in entries)
    ]


def _captions(entries: Mapping[str, Entry], labels: set[str]) -> list[str]:
    """Texts where captions belong: in labels/, or in a folder of captions of videos."""
    homes = {label.rpartition("/")[0] for label in labels}
    has_videos = any(VIDEOS in key.split("/")[:-1] for key in entries)
    found = []
    for key in sorted(entries):
        folder, _, name = key.rpartition("/")
        stem, dot, suffix = name.rpartition(".")
        if not dot or suffix != "txt":
            continue
        in_labels = has_videos and LABELS in folder.split("/")
        if in_labels or (folder in homes and stem.lower() not in NO_CAPTIONS):
            found.append(key)
    return found
