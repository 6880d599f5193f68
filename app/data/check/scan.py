"""Scan a whole dataset in parallel and collect everything that is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from app.data.check.datasets import DAMAGED, Found, open_dataset
from app.data.check.sample import CheckedClip, CheckRules, Problem, Sample, check_sample
from app.data.shards.captions import TextRules
from app.data.video.decoder import DecoderOfThread

CLIPS_SHOWN = 24  # on the contact sheet
FOLDER_SHORTEST = 7  # skip_frms_num of a folder is 3 at both ends, and one must be left
NO_SAMPLES = "no_samples"
Progress = Callable[[int, int], None]  # (samples done, samples known so far)


@dataclass(frozen=True, slots=True)
class Census:
    """What a dataset holds.

    Attributes:
        kind: "folder" or "shards".
        shards: read; 0 for a folder.
        samples: all that were found, those with problems too.
        clips: one per sample that has a place in the order of training.
        problems: sorted by source, key and reason.
    """

    kind: str
    shards: int
    samples: int
    clips: tuple[CheckedClip, ...]
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class ScanSettings:
    """How to scan: number of decoder processes, and whether to keep small frames of clips."""

    workers: int = 2
    thumbnails: bool = False


def check_dataset(
    url: str,
    rules: CheckRules,
    text: TextRules,
    settings: ScanSettings,
    progress: Progress = lambda done, total: None,
) -> Census:
    """Read, decode and judge every sample.

    Args:
        url: a folder, shards, a prefix or a glob, as `train_data` takes them.
        rules: what counts as wrong.
        text: names of captions and metadata in shards.
        settings: how to scan.
        progress: called after every sample.

    Raises:
        InputMissingError: nothing is there.
        ConfigError: a path of a kind that is not read.
    """
    found, groups = open_dataset(url, text)
    if found.kind == "folder":
        shortest = max(rules.shortest_frames, FOLDER_SHORTEST)
        rules = replace(rules, shortest_frames=shortest)
    clips: list[CheckedClip] = []
    decoders = DecoderOfThread(strict=True)
    try:
        # The decoders die with the threads that made them: one pool for all groups.
        with ThreadPoolExecutor(settings.workers, thread_name_prefix="check") as pool:
            for group in groups:
                shown = _shown(group, CLIPS_SHOWN - _count_shown(clips), settings.thumbnails)
                look = partial(_look, rules, decoders)
                for clip, problems in pool.map(look, group, shown):
                    clips.append(clip)
                    found.problems += problems
                    progress(len(clips), found.total)
    finally:
        decoders.close()
    if found.kind == "shards":
        damaged = {one.source for one in found.problems if one.reason == DAMAGED}
        found.problems += _repeated(clip for clip in clips if clip.source not in damaged)
    if not clips and not found.problems:
        detail = "there is no sample in it"
        found.problems.append(Problem(url, url.rstrip("/").rpartition("/")[2], NO_SAMPLES, detail))
    return _census(found, clips)


def _look(
    rules: CheckRules, decoders: DecoderOfThread, sample: Sample, show: bool
) -> tuple[CheckedClip, list[Problem]]:
    return check_sample(sample, rules, decoders.get(), show=show)


def _shown(group: Sequence[Sample], room: int, thumbnails: bool) -> list[bool]:
    """Which samples of a group go on the contact sheet: evenly spread ones."""
    if not thumbnails or room <= 0 or not group:
        return [False] * len(group)
    count = min(room, len(group))
    chosen = {which * len(group) // count for which in range(count)}
    return [place in chosen for place in range(len(group))]


def _count_shown(clips: Iterable[CheckedClip]) -> int:
    return sum(clip.frames_shown is not None for clip in clips)


def _repeated(clips: Iterable[CheckedClip]) -> list[Problem]:
    """Samples that are in two shards under one key with one content: packed twice.

    A key alone may come again: many datasets number the samples of each shard anew. What is left
    of a damaged shard does not count: a whole copy of it may be there.
    """
    first: dict[tuple[str, bytes], str] = {}
    problems = []
    for clip in clips:
        if clip.content:
            source = first.setdefault((clip.key, clip.content), clip.source)
            if source != clip.source:
                detail = f"the same sample is in {source}"
                problems.append(Problem(clip.source, clip.key, "duplicate_key", detail))
    return problems


def _census(found: Found, clips: Sequence[CheckedClip]) -> Census:
    problems = sorted(set(found.problems), key=lambda p: (p.source, p.key, p.reason))
    return Census(
        kind=found.kind,
        shards=found.shards,
        samples=len(clips) + found.left_out,
        clips=tuple(clips),
        problems=tuple(problems),
    )
