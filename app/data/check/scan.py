"""Scan a whole dataset in parallel and collect everything that is wrong with it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

from app.config.argument import default_of
from app.config.dataset_defaults import DEFAULT_FPS
from app.config.schema.data import SFTDataConfig, ShardDataConfig
from app.data.check.datasets import DAMAGED, Found, open_dataset
from app.data.check.sample import (
    CheckedClip,
    CheckRules,
    ChooseFrames,
    Problem,
    Sample,
    check_sample,
)
from app.data.left_out import summary
from app.data.shards.captions import TextRules
from app.data.sources.settings import EXACT, SAT, SourceSettings
from app.data.sources.webdataset import sat_selection
from app.data.video import frames
from app.data.video.decoder import DecoderOfThread
from app.data.video.frames import FrameRequest

CLIPS_SHOWN = 24  # on the contact sheet
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
        left_out: in one line, what training will name as left out; "" for nothing.
    """

    kind: str
    shards: int
    samples: int
    clips: tuple[CheckedClip, ...]
    problems: tuple[Problem, ...]
    left_out: str = ""


@dataclass(frozen=True, slots=True)
class TrainedClip:
    """The clips that training will make.

    Attributes:
        num_frames: of a clip.
        fps: of a clip.
        skip: frames left out at both ends; None: what the class of the dataset has by default.
        frame_rule: EXACT or SAT.
    """

    num_frames: int = 49
    fps: float = DEFAULT_FPS
    skip: float | None = None
    frame_rule: str = EXACT

    def rule_for(self, kind: str) -> ChooseFrames:
        """What training does to a sample of a folder or of shards."""
        is_folder = kind == "folder"
        skip = self.skip
        if skip is None:
            skip = default_of(SFTDataConfig if is_folder else ShardDataConfig, "skip_frms_num")
        request = FrameRequest(self.num_frames, self.fps, skip)
        if self.frame_rule == EXACT:
            return lambda facts, sample: frames.exact(facts.times, request)
        if is_folder:
            return lambda facts, sample: frames.sat_folder(facts.reported, facts.fps, request)
        return lambda facts, sample: sat_selection(
            sample.metadata(), request, facts, random.Random(0)
        )


@dataclass(frozen=True, slots=True)
class ScanSettings:
    """How to scan.

    Attributes:
        workers: decoder processes.
        thumbnails: keep small frames of clips.
        clip: what training makes of a sample.
        upstream_names: find videos and captions of a folder as upstream does.
    """

    workers: int = 2
    thumbnails: bool = False
    clip: TrainedClip = field(default_factory=TrainedClip)
    upstream_names: bool = False


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
    upstream = SourceSettings(caption_rule=SAT) if settings.upstream_names else SourceSettings()
    found, groups = open_dataset(url, text, upstream)
    rules = replace(rules, choose_frames=settings.clip.rule_for(found.kind))
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
        left_out=summary(found.named, len(clips)) if found.named else "",
    )
