"""What a check of data reports, from a scan that is written down here."""

from __future__ import annotations

from pathlib import Path

import pytest

import app.run.dataset.check as check
from app.config.schema.data import Bucket
from app.data.check.sample import CheckedClip, CheckRules, MinimumClip, Problem
from app.data.check.scan import Census
from app.data.video.sizes import ClipSize
from app.errors import ConfigError, UsageError
from app.run.dataset.check import CheckRequest, as_configured, bucket_of, check_data
from tests.support.configs import TINY, base, load

SMALL, LARGE = Bucket(9, 32, 64), Bucket(17, 32, 64)
REQUEST = CheckRequest(url="clips", buckets=(SMALL, LARGE), fps=8.0)


def clip(key: str, frames: int | None, tokens: int | None = 10) -> CheckedClip:
    size = None if frames is None else ClipSize(64, 128, frames, 8.0)
    return CheckedClip(
        "clips", key, 1000, size, "avc1" if frames else "", (frames or 0) / 8, tokens
    )


CENSUS = Census(
    kind="folder",
    shards=0,
    samples=5,
    clips=(clip("a", 40), clip("b", 16), clip("c", 8, 30), clip("d", None, None)),
    problems=(
        Problem("clips", "c", "caption_too_long", "it has 30 tokens"),
        Problem("clips", "d", "truncated", "it is cut"),
        Problem("clips", "e", "no_video", "it has a caption alone"),
    ),
)


@pytest.fixture
def rules(monkeypatch: pytest.MonkeyPatch) -> list[CheckRules]:
    used: list[CheckRules] = []

    def scan(url: str, given: CheckRules, *_: object) -> Census:
        assert url == "clips"
        used.append(given)
        return CENSUS

    monkeypatch.setattr(check, "check_dataset", scan)
    return used


def test_every_clip_is_counted_once_in_a_bucket_or_with_the_reason_why_in_none(
    rules: list[CheckRules],
) -> None:
    result = check_data(REQUEST)

    assert result.buckets == {
        "9x32x64": 1,
        "17x32x64": 1,
        "shorter than every bucket": 1,
        "not usable": 1,
    }
    assert [bucket_of(one.size, REQUEST) for one in CENSUS.clips] == [1, 0, None, None]
    assert rules[0].minimum is None


def test_the_report_counts_usable_samples_and_spreads_those_that_could_be_read(
    rules: list[CheckRules],
) -> None:
    found = check_data(REQUEST).as_json("clips")

    assert (found["samples"], found["usable"], found["bytes"]) == (5, 2, 4000)
    assert found["frames"] == {"min": 8, "median": 16, "max": 40, "total": 64}
    assert found["seconds"] == {"min": 1.0, "median": 2.0, "max": 5.0, "total": 8.0}
    assert "total" not in found["fps"]  # a sum of rates means nothing
    assert found["caption_tokens"] == {
        "min": 10,
        "median": 10,
        "max": 30,
        "total": 50,
        "estimated": True,
    }
    assert found["reasons"] == {"caption_too_long": 1, "truncated": 1, "no_video": 1}
    assert (found["sizes"], found["codecs"]) == ({"64x128": 3}, {"avc1": 3})


def test_buckets_that_must_be_filled_make_short_clips_a_problem(rules: list[CheckRules]) -> None:
    check_data(CheckRequest(url="clips", buckets=(LARGE, SMALL), must_fill=True, skip_frames=2))

    assert rules[0].minimum == MinimumClip(9, 8.0, 2)


def test_a_chart_that_cannot_be_written_is_an_error_before_the_scan(
    rules: list[CheckRules], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="the image cannot be written"):
        check_data(CheckRequest(url="clips", png=tmp_path))

    assert rules == []


def test_a_configuration_says_what_data_is_for() -> None:
    shards = as_configured(REQUEST, load(*TINY))
    folder = as_configured(REQUEST, load(*base("cogvideox_2b", "sft")))
    buckets = as_configured(REQUEST, load(*TINY, "data.buckets=[9x32x64,5x64x32]"))

    assert shards.buckets == (SMALL,)
    assert (shards.fps, shards.skip_frames, shards.most_tokens) == (8, 0, 16)
    assert shards.meta_names == ("duration", "fps", "caption")
    assert folder.buckets == (Bucket(49, 480, 720),)
    assert (folder.skip_frames, folder.most_tokens) == (3, 226)
    assert buckets.buckets == (SMALL, Bucket(5, 64, 32))
    with pytest.raises(ConfigError, match="says nothing about videos"):
        as_configured(REQUEST, load(*base("tiny/tiny")))


def test_a_configuration_says_how_training_reads_it() -> None:
    ours = as_configured(REQUEST, load(*TINY, "data.caption_prefix=sks"))
    sat = as_configured(REQUEST, load(*TINY, "--compat", "sat"))

    assert (ours.num_frames, ours.frame_rule, ours.caption_prefix) == (9, "exact", "sks")
    assert not ours.upstream_names
    assert (sat.frame_rule, sat.upstream_names, sat.may_lack_captions) == ("sat", True, True)
