from __future__ import annotations

from pathlib import Path

import pytest

from app.data.video.decoder import VideoDecoder
from app.data.video.upstream_facts import upstream_facts
from tests.support.clip_files import encode
from tests.support.numbered_videos import make


def test_length_and_rate_are_those_of_upstreams_decoder(tmp_path: Path) -> None:
    blob = encode(tmp_path / "a.mp4", frames=30, fps=10.0).read_bytes()

    assert upstream_facts(blob) == (30, pytest.approx(10.0))


def test_hidden_frames_count_for_upstream_and_are_not_shown(tmp_path: Path) -> None:
    blob = make(tmp_path, "h264_edit_list").read_bytes()
    decoder = VideoDecoder(upstream=True)

    facts = decoder.probe(blob)
    decoder.close()

    assert facts.reported == upstream_facts(blob)[0]  # type: ignore[index]
    assert facts.frames < facts.reported


def test_what_upstream_cannot_read_keeps_its_own_length(tmp_path: Path) -> None:
    blob = make(tmp_path, "av1_mp4").read_bytes()
    decoder = VideoDecoder(upstream=True)

    facts = decoder.probe(blob)
    decoder.close()

    assert upstream_facts(blob) is None
    assert (facts.reported, facts.frames) == (49, 49)
