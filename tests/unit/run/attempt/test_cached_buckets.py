"""The latent cache of a run with several clip sizes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from app.config.schema.run import TrainableRun
from app.data.opening import LoaderRequest, open_loader
from app.data.order.share import Share
from app.errors import ConfigError
from app.run.attempt.latents import CachedClips
from tests.support.clip_files import encode as write_clip
from tests.support.encoding import CAPTIONS, Inputs, write_inputs

BUCKETS = "data.buckets=[9x32x64, 5x32x32]"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Wide clips and square ones, some short, and one that is no video."""
    made = write_inputs(tmp_path_factory.mktemp("made"))
    for number, (frames, size) in enumerate([(20, (48, 96)), (7, (64, 64)), (30, (64, 64))]):
        write_clip(made.clips / f"videos/d{number}.mp4", frames=frames, size=size)
        (made.clips / f"labels/d{number}.txt").write_text(f"another clip {number}")
    (made.clips / "videos/e.mp4").write_text("no video " * 200)
    (made.clips / "labels/e.txt").write_text("nothing to see")
    return made


def loader_of(config: TrainableRun, cached: CachedClips | None) -> Any:
    request = LoaderRequest(
        paths=config.data.train,
        share=Share(0, 1, 2),
        seed=3,
        replace=cached.cached_source if cached is not None else None,
    )
    return open_loader(config.data, request)


def test_every_clip_is_encoded_at_the_size_of_its_bucket(inputs: Inputs) -> None:
    report = inputs.encode(BUCKETS)
    config = inputs.config(BUCKETS, "--latent-cache", str(inputs.cache))

    assert (report.computed, len(report.bad)) == (8, 1)
    shapes = set()
    with loader_of(config, None) as live, loader_of(config, CachedClips.of_run(config)) as encoded:
        for one, other in zip(live.batches(0, 6), encoded.batches(0, 6), strict=True):
            assert (one["keys"], one["positions"]) == (other["keys"], other["positions"])
            _, frames, _, rows, columns = one["mp4"].shape
            _, t, _, h, w = other["latent_mean"].shape
            assert (t, h, w) == ((frames - 1) // 4 + 1, rows // 8, columns // 8)
            shapes.add((t, h, w))
        assert live.cursor(6) == encoded.cursor(6)
    assert shapes == {(3, 4, 8), (2, 4, 4)}


@pytest.mark.parametrize("change", ["touched", "copied"])
def test_a_copy_of_the_clips_is_known_by_its_content(
    inputs: Inputs, tmp_path: Path, change: str
) -> None:
    clips = inputs.clips
    (clips / "videos/e.mp4").unlink(missing_ok=True)
    inputs.encode(BUCKETS)
    if change == "touched":
        os.utime(clips / "videos/c1.mp4", (1, 1))
    else:
        clips = Path(shutil.copytree(clips, tmp_path / "clips", copy_function=shutil.copy))
    words = ("--latent-cache", str(inputs.cache), f"args.train_data=[{clips}]")
    config = inputs.config(BUCKETS, *words)

    with loader_of(config, CachedClips.of_run(config)) as loader:
        batch = next(loader.batches(0, 1))

    assert "latent_mean" in batch
    (clips / "labels/c1.txt").write_text("another caption")
    with pytest.raises(ConfigError, match="lacks 1 of 8 clips"):
        loader_of(config, CachedClips.of_run(config))
    (clips / "labels/c1.txt").write_text(CAPTIONS["c1"] or "")


def test_a_cache_of_one_size_does_not_fit_a_run_with_buckets(
    inputs: Inputs, tmp_path: Path
) -> None:
    inputs.encode(out=str(tmp_path))

    with pytest.raises(ConfigError) as caught:
        CachedClips.of_run(inputs.config(BUCKETS, "--latent-cache", str(tmp_path)))

    assert 'buckets is nothing in the cache and ["9x32x64", "5x32x32"] here' in caught.value.what
    assert BUCKETS.partition("=")[0] in caught.value.fix
