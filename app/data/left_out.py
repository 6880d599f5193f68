"""What a dataset names and does not give to training, and the one way in which that is said.

Every command that reads a dataset (check, pack, train, encode) names it with `summary`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from app.data.names import VIDEO_SUFFIXES, name_fault, shown

NAMES_SHOWN = 3  # of each reason
UNSUPPORTED, UNUSABLE, UNREADABLE = "unsupported_suffix", "unusable_name", "unreadable"
NO_VIDEO, TWO_VIDEOS, DOTS = "no_video", "two_videos", "dots_in_name"
UNSAFE, NOT_A_FILE, DUPLICATE, TOO_LARGE = (
    *("unsafe_name", "not_a_file"),
    *("duplicate_key", "too_large"),
)
WHY = {
    UNSUPPORTED: "videos of this kind are not read: convert it to one of "
    + " ".join(VIDEO_SUFFIXES),
    UNREADABLE: "this is a link to nothing or not a regular file",
    NO_VIDEO: "no member of this sample is a video",
    TWO_VIDEOS: "this sample has two videos: give each a name of its own",
    DOTS: "the name of a sample ends at the first dot of its file name, and what follows is read "
    "as its suffix: replace the other dots, also in the name of its caption",
    UNSAFE: "its name is absolute, has '..', a backslash or control characters, or is too long",
    NOT_A_FILE: "this is a link or a device",
    DUPLICATE: "two members have this name",
    TOO_LARGE: "a member of this sample is too large",
}


class LeftOut(NamedTuple):
    """A sample that got no index; `dataset` counts the entries of `train_data`."""

    shard: str
    key: str
    reason: str
    dataset: int = 0


def why(one: LeftOut) -> str:
    """What is wrong, and how to fix it."""
    if one.reason == UNUSABLE:
        return f"{name_fault(one.key)}: rename it"
    if one.reason == DOTS:
        base = one.key.rpartition("/")[2]
        return f"{base!r} has {base.count('.')} dots: {WHY[DOTS]}"
    return WHY.get(one.reason, "the sample is left out of training")


def summary(left_out: Sequence[LeftOut], videos: int, unnamed: int = 0) -> str:
    """One line: how many are left out, by reason, with the first names.

    Args:
        left_out: those whose names are known.
        videos: that are read.
        unnamed: more that are left out.
    """
    by_reason: dict[str, list[LeftOut]] = {}
    for one in left_out:
        by_reason.setdefault(one.reason, []).append(one)
    parts = []
    for reason, ones in sorted(by_reason.items(), key=lambda pair: (-len(pair[1]), pair[0])):
        names = ", ".join(_name(one) for one in ones[:NAMES_SHOWN])
        more = f" and {len(ones) - NAMES_SHOWN} more" if len(ones) > NAMES_SHOWN else ""
        parts.append(f"{reason} {len(ones)} ({names}{more})")
    if unnamed:
        parts.append(f"and {unnamed} more")
    count = len(left_out) + unnamed
    return f"{count} of {count + videos} videos are left out: {', '.join(parts)}"


def _name(one: LeftOut) -> str:
    return f"{one.shard}:{shown(one.key)}" if one.shard else shown(one.key)
