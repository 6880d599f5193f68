"""Check one sample as closely as training will, and report everything that is wrong with it."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from app.data.bad_clip import BadClipError
from app.data.sources.settings import prefixed
from app.data.video.decoder import VideoDecoder, VideoFacts
from app.data.video.mp4 import LARGEST_FILE_BYTES
from app.data.video.sizes import ClipSize
from app.data.video.transforms import resize
from app.errors import CogvxError

# Pixels that are decoded of one video (16 ns each on one core): a video of hours must not stall
# the scan; damage behind that is found by training.
MOST_PIXELS = 4_000_000_000
FRAMES_SHOWN, ROWS_SHOWN = 5, 96  # of a clip, for the contact sheet
FEWEST_DECODED = 5  # however large they are
TOO_SHORT = "too_short"
# SentencePiece never joins words, cuts pieces at 16 characters and takes marks for themselves, so
# this many tokens are certain; English captions have under 5.5 characters per token.
LONGEST_PIECE = 16
CHARACTERS_PER_TOKEN = 5.5
_PIECES = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong: which dataset or shard, which sample of it, a short word, a sentence."""

    source: str
    key: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample, not read yet. The callables may be called from any thread.

    `caption` gives None where there is none, and BadClipError where it or the metadata, which
    only a shard has, cannot be read.
    """

    source: str
    key: str
    size_bytes: int
    video: Callable[[], bytes]
    caption: Callable[[], str | None]
    metadata: Callable[[], Mapping[str, object]] = dict


# The rule of training: which frames of a sample make a clip; BadClipError where none do.
ChooseFrames = Callable[[VideoFacts, Sample], object]


@dataclass(frozen=True, slots=True)
class MinimumClip:
    """The shortest clip that is of use: frames at a rate, some left out at both ends."""

    frames: int
    fps: float
    skip_frames: int


@dataclass(frozen=True, slots=True)
class CheckRules:
    """What counts as wrong beyond what training refuses.

    Attributes:
        shortest_frames: a video with fewer frames is a problem.
        choose_frames: what training cannot make a clip of is a problem, by its own reason.
        most_tokens: of a caption; what is beyond is cut off by the text encoder.
        count_tokens: tokens of a caption, end mark included; None estimates them.
        may_lack_captions: missing and empty captions are allowed.
        caption_prefix: what training puts before every caption.
        minimum: a clip that does not reach this is a problem too.
    """

    shortest_frames: int = 1
    choose_frames: ChooseFrames = lambda facts, sample: None
    most_tokens: int = 226
    count_tokens: Callable[[str], int] | None = None
    may_lack_captions: bool = False
    caption_prefix: str = ""
    minimum: MinimumClip | None = None


@dataclass(frozen=True, slots=True)
class CheckedClip:
    """What a sample holds. `size` is None where the video cannot be used."""

    source: str
    key: str
    size_bytes: int
    size: ClipSize | None = None
    codec: str = ""
    duration_s: float = 0.0
    tokens: int | None = None
    frames_shown: Tensor | None = None  # (n, 3, 96, W) uint8
    content: bytes = b""  # sha256 of the video and its caption
    traits: tuple[str, ...] = ()  # of the video, as VideoFacts.traits


def check_sample(
    sample: Sample, rules: CheckRules, decoder: VideoDecoder, *, show: bool
) -> tuple[CheckedClip, list[Problem]]:
    """Read, decode and describe one sample; never raises for what is wrong with it.

    Args:
        show: keep a few small frames of it.
    """
    problems: list[Problem] = []

    def note(reason: str, detail: str) -> None:
        problems.append(Problem(sample.source, sample.key, reason, detail))

    tokens, words = _check_caption(sample, rules, note)
    blank = CheckedClip(sample.source, sample.key, sample.size_bytes, tokens=tokens)
    if sample.size_bytes > LARGEST_FILE_BYTES:
        note("too_large", f"the file has {sample.size_bytes} bytes")
        return blank, problems
    try:
        blob = sample.video()
        facts, size, shown = _decode(blob, decoder, show)
    except BadClipError as problem:
        note(problem.reason, problem.detail)
        return blank, problems
    except (CogvxError, OSError) as problem:
        note("unreadable", getattr(problem, "what", str(problem)))
        return blank, problems
    fault = _unsuited(sample, facts, size, rules)
    if fault is not None:
        note(*fault)
    clip = CheckedClip(
        source=sample.source,
        key=sample.key,
        size_bytes=sample.size_bytes,
        size=size,
        codec=facts.header.codec,
        traits=facts.traits,
        duration_s=_seconds(facts),
        tokens=tokens,
        frames_shown=shown,
        content=hashlib.sha256(hashlib.sha256(blob).digest() + words.encode()).digest(),
    )
    return clip, problems


def _unsuited(
    sample: Sample, facts: VideoFacts, size: ClipSize, rules: CheckRules
) -> tuple[str, str] | None:
    """Reason and sentence of a sound video that is not what training needs, by its own rule."""
    try:
        rules.choose_frames(facts, sample)
    except BadClipError as problem:
        return problem.reason, problem.detail
    short = _shortage(size, rules)
    return None if short is None else (TOO_SHORT, short)


def _shortage(size: ClipSize, rules: CheckRules) -> str | None:
    """Why a clip is too short, if it is."""
    if size.frames < rules.shortest_frames:
        return f"it has {size.frames} frames, fewer than {rules.shortest_frames}"
    minimum = rules.minimum
    if minimum is None:
        return None
    frames = size.frames_at(minimum.fps, minimum.skip_frames)
    if frames >= minimum.frames:
        return None
    return f"it gives {frames} frames at {minimum.fps:g} per second, fewer than {minimum.frames}"


def estimated_tokens(caption: str) -> int:
    """Tokens that a caption has at least, without a tokenizer; the end mark counts."""
    pieces = sum(math.ceil(len(piece) / LONGEST_PIECE) for piece in _PIECES.findall(caption))
    return max(pieces, math.ceil(len(caption) / CHARACTERS_PER_TOKEN)) + 1


def _check_caption(
    sample: Sample, rules: CheckRules, note: Callable[[str, str], None]
) -> tuple[int | None, str]:
    """Tokens of the caption and its text, after noting what is wrong with it."""
    try:
        text = sample.caption()
    except BadClipError as problem:
        note(problem.reason, problem.detail)
        return None, ""
    except (CogvxError, OSError) as problem:
        note("unreadable", getattr(problem, "what", str(problem)))
        return None, ""
    if text is None or not text.strip():
        if not rules.may_lack_captions:
            missing = text is None
            note("no_caption" if missing else "empty_caption", "it has no caption text")
        return 0, ""
    text = text.strip()
    tokens = (rules.count_tokens or estimated_tokens)(prefixed(rules.caption_prefix, text))
    if tokens > rules.most_tokens:
        kind = "tokens" if rules.count_tokens else "tokens by estimate"
        note("caption_too_long", f"its caption has {tokens} {kind}, more than {rules.most_tokens}")
    return tokens, text


def _decode(
    blob: bytes, decoder: VideoDecoder, show: bool
) -> tuple[VideoFacts, ClipSize, Tensor | None]:
    """Decode the whole video: some damage shows nowhere else."""
    shape = (0, 0)
    places: dict[int, int] = {}
    small: dict[int, Tensor] = {}

    def choose(facts: VideoFacts) -> range:
        pixels = max(1, facts.header.rows * facts.header.columns)
        count = min(facts.frames, max(FEWEST_DECODED, MOST_PIXELS // pixels))
        places.clear()
        if show and count:
            picked = np.linspace(0, count - 1, min(FRAMES_SHOWN, count)).round().astype(int)
            places.update({int(frame): place for place, frame in enumerate(picked)})
        return range(count)

    def take(which: int, frame: np.ndarray) -> None:
        nonlocal shape
        shape = (frame.shape[0], frame.shape[1])
        if which in places:
            small[places[which]] = _thumbnail(frame)

    facts = decoder.decode(blob, choose, take)
    if not shape[0]:
        raise BadClipError(TOO_SHORT, "no frame of it can be seen")
    size = ClipSize(shape[0], shape[1], facts.frames, facts.fps)
    return facts, size, torch.stack([small[i] for i in sorted(small)]) if small else None


def _thumbnail(frame: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 to (3, 96, W') uint8."""
    rows, columns = frame.shape[:2]
    # A copy: the frame's memory is used again.
    pixels = torch.from_numpy(frame).permute(2, 0, 1).unsqueeze(0).clone()
    return resize(pixels, (ROWS_SHOWN, max(1, round(columns * ROWS_SHOWN / rows))))[0]


def _seconds(facts: VideoFacts) -> float:
    """How long the frames that can be seen last."""
    if facts.frames < 2 or facts.fps <= 0:
        return facts.header.duration_s
    return float(facts.times[-1] - facts.times[0] + 1 / facts.fps)
