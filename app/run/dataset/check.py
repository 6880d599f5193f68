"""What `cogvx data check` finds out: the scan, the buckets that would be filled, the chart."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from app.config.dataset_defaults import DEFAULT_BUCKETS, DEFAULT_FPS, MOST_TOKENS
from app.config.schema.data import Bucket, SFTDataConfig, ShardDataConfig
from app.config.schema.run import RunConfig
from app.data.check.sample import CheckRules, MinimumClip
from app.data.check.scan import Census, Progress, ScanSettings, TrainedClip, check_dataset
from app.data.order.buckets import best_bucket
from app.data.shards.captions import TextRules
from app.data.sources.settings import EMPTY, EXACT, SAT
from app.data.video.sizes import ClipSize
from app.errors import ConfigError, UsageError
from app.models.text.t5 import load_tokenizer
from app.run.dataset.chart import data_chart
from app.storage.fetch import fetch
from app.storage.node_disk import node_folder

TOO_SHORT, TOO_BROKEN = "shorter than every bucket", "not usable"


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckRequest:
    """What to check, and for what.

    Attributes:
        url: the dataset, as `train_data` names it.
        t5: folder of the tokenizer; None estimates the tokens.
        most_tokens: longest caption.
        buckets: sizes to fill; with `must_fill` a clip shorter than all of them is a problem.
        fps: frame rate of the buckets.
        skip_frames: left out at both ends; None: what the class of the dataset has by default
            (buckets are then filled without).
        num_frames: of the clips.
        frame_rule: of training.
        upstream_names: find videos and captions of a folder as upstream does (compat: sat).
        caption_prefix: what training puts before every caption.
        workers: decoder processes.
        png: file of the chart; None draws none.
    """

    url: str
    t5: str | None = None
    most_tokens: int = MOST_TOKENS
    txt_key: str = "caption"
    meta_names: tuple[str, ...] = ()
    may_lack_captions: bool = False
    buckets: Sequence[Bucket] = DEFAULT_BUCKETS
    must_fill: bool = False
    fps: float = DEFAULT_FPS
    skip_frames: int | None = None
    num_frames: int = DEFAULT_BUCKETS[0].frames
    frame_rule: str = EXACT
    upstream_names: bool = False
    caption_prefix: str = ""
    workers: int = 2
    png: Path | None = None


def as_configured(request: CheckRequest, config: RunConfig) -> CheckRequest:
    """The request with the sizes, names and limits of a run's configuration.

    Raises:
        ConfigError: the configuration has no `data` section, or a class of the user's own.
    """
    data, model = config.data, config.model
    params = data.params if data is not None else None
    if data is None or not isinstance(params, SFTDataConfig | ShardDataConfig):
        raise ConfigError(
            "the configuration says nothing about videos",
            where="--base",
            fix="add a recipe such as configs/sft.yaml",
        )
    if isinstance(params, ShardDataConfig):
        one_size = Bucket(params.num_frames, *params.image_size)
        request = replace(request, txt_key=params.txt_key, meta_names=params.meta_names)
    else:
        one_size = Bucket(params.max_num_frames, *params.video_size)
    return replace(
        request,
        most_tokens=model.conditioner.text.max_length if model else request.most_tokens,
        may_lack_captions=data.missing_captions == EMPTY or config.compat.mode == SAT,
        buckets=data.buckets or (one_size,),
        fps=params.fps,
        skip_frames=int(params.skip_frms_num),
        num_frames=one_size.frames,
        frame_rule=config.compat.frame_rule,
        upstream_names=config.compat.mode == SAT,
        caption_prefix=data.caption_prefix,
    )


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What was found: the census, and clips per bucket by the bucket's name."""

    census: Census
    buckets: dict[str, int]
    tokens_are_estimated: bool

    def as_json(self, url: str) -> dict[str, object]:
        """Everything for programs. Names of keys are part of the product's interface."""
        census = self.census
        sizes = [clip.size for clip in census.clips if clip.size is not None]
        bad = {(problem.source, problem.key) for problem in census.problems}
        usable = [c for c in census.clips if (c.source, c.key) not in bad]
        return {
            "url": url,
            "kind": census.kind,
            "samples": census.samples,
            "usable": len(usable),
            "shards": census.shards,
            "left_out": census.left_out,
            "problems": [
                {"source": problem.source, "key": problem.key, "reason": problem.reason}
                for problem in census.problems
            ],
            "details": [problem.detail for problem in census.problems],
            "reasons": dict(Counter(problem.reason for problem in census.problems)),
            "bytes": sum(clip.size_bytes for clip in census.clips),
            "seconds": _spread([c.duration_s for c in census.clips if c.size is not None]),
            "frames": _spread([size.frames for size in sizes]),
            "fps": _spread([size.fps for size in sizes], total=False),
            "sizes": _most_common(f"{size.rows}x{size.columns}" for size in sizes),
            "codecs": _most_common(clip.codec for clip in census.clips if clip.codec),
            "traits": _most_common(trait for clip in census.clips for trait in clip.traits),
            "caption_tokens": _spread([c.tokens for c in census.clips if c.tokens])
            | {"estimated": self.tokens_are_estimated},
            "buckets": self.buckets,
        }


def check_data(request: CheckRequest, progress: Progress = lambda done, total: None) -> CheckResult:
    """Scan a dataset and draw its chart, if a file is named.

    Raises:
        InputMissingError: there is no data, or no tokenizer.
        UsageError: the chart cannot be written.
    """
    if request.png is not None:
        _check_writable(request.png)
    shortest = min(bucket.frames for bucket in request.buckets)
    rules = CheckRules(
        minimum=MinimumClip(shortest, request.fps, request.skip_frames or 0)
        if request.must_fill
        else None,
        most_tokens=request.most_tokens,
        count_tokens=_counter(request.t5) if request.t5 else None,
        may_lack_captions=request.may_lack_captions,
        caption_prefix=request.caption_prefix,
    )
    clip = TrainedClip(request.num_frames, request.fps, request.skip_frames, request.frame_rule)
    census = check_dataset(
        request.url,
        rules,
        TextRules(request.txt_key, request.meta_names),
        ScanSettings(
            request.workers,
            thumbnails=request.png is not None,
            clip=clip,
            upstream_names=request.upstream_names,
        ),
        progress,
    )
    result = CheckResult(census, _filled(census, request), request.t5 is None)
    if request.png is not None:
        request.png.write_bytes(data_chart(census, result.buckets))
    return result


def _filled(census: Census, request: CheckRequest) -> dict[str, int]:
    """How many clips each bucket would get; those that fit no bucket have a line of their own."""
    counts = {str(bucket): 0 for bucket in request.buckets}
    rest: Counter[str] = Counter()
    for clip in census.clips:
        which = bucket_of(clip.size, request)
        if which is None:
            rest[TOO_BROKEN if clip.size is None else TOO_SHORT] += 1
        else:
            counts[str(request.buckets[which])] += 1
    return counts | dict(rest)


def bucket_of(size: ClipSize | None, request: CheckRequest) -> int | None:
    """Number of the bucket that a clip would go to; None: none."""
    if size is None:
        return None
    return best_bucket(size, request.buckets, request.fps, request.skip_frames or 0)


def _counter(url: str) -> Callable[[str], int]:
    """Tokens of a caption by the tokenizer of a folder."""
    tokenizer = load_tokenizer(fetch(url, node_folder("weights")))

    def count(caption: str) -> int:
        return len(tokenizer([caption], add_special_tokens=True, verbose=False)["input_ids"][0])

    return count


def _spread(values: Sequence[float | None], *, total: bool = True) -> dict[str, object]:
    known = [value for value in values if value is not None]
    if not known:
        return {}
    spread: dict[str, object] = {
        "min": round(min(known), 3),
        "median": round(statistics.median(known), 3),
        "max": round(max(known), 3),
    }
    return spread | ({"total": round(sum(known), 3)} if total else {})


def _most_common(words: object) -> dict[str, int]:
    counted = Counter(words)  # type: ignore[call-overload]
    return dict(counted.most_common())


def _check_writable(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()  # a folder can be touched, and not opened
    except OSError as problem:
        raise UsageError(
            f"the image cannot be written: {problem.strerror}",
            where=str(path),
            fix="name another file with --png",
        ) from problem
