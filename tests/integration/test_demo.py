"""`cogvx demo`: what the README promises, twice, and what it says when it fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tiny_run import clean_environment, cogvx


@pytest.mark.slow
def test_the_demo_works_and_works_again(tmp_path: Path) -> None:
    words = ["demo", "--out", str(tmp_path / "out")]
    environment = clean_environment(tmp_path / "tmp")

    for _ in range(2):
        ended = cogvx(words, environment, timeout_s=480)

        assert ended.code == 0, ended.out[-3000:] + ended.err[-3000:]
        for word in ("validation loss at start", "samples/s", "SIGKILL", "a sample video"):
            assert word in ended.out
    bucket = tmp_path / "out/s3/runs"
    assert list(bucket.glob("lora/export/*/pytorch_lora_weights.safetensors"))
    assert list(bucket.glob("full/samples/*/p000-model.mp4"))


@pytest.mark.slow
def test_a_demo_that_learns_too_little_fails_and_says_so(tmp_path: Path) -> None:
    words = ["demo", "--out", str(tmp_path / "out"), "--steps", "24", "--lora-steps", "2"]
    slow = ["--lr", "1e-6"]

    ended = cogvx([*words, *slow], clean_environment(tmp_path / "tmp"), timeout_s=480)

    assert ended.code == 1, ended.out[-3000:] + ended.err[-3000:]
    assert "fell by less than 10%" in ended.err
    assert "the demo failed" in ended.out
