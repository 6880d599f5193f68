"""The example of a dataset of one's own, through the same door as any other."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
import torch

from app.data.opening import LoaderRequest, open_loader
from app.data.order.share import Share
from tests.support.configs import ROOT, base, load
from tests.support.pictures import write_pictures

WORDS = (
    *base("tiny/tiny", "tiny/tiny_train", str(ROOT / "examples" / "still_images.yaml")),
    *("--register", "stills=examples.still_images:StillImages"),
    *("data.params.video_size=[32,64]", "data.params.max_num_frames=9"),
)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "pictures", 5)


def test_the_example_gives_clips_of_the_wanted_size(pictures: Path) -> None:
    config = load(*WORDS, "--train-data", str(pictures))
    assert config.data is not None
    request = LoaderRequest(
        paths=config.data.train, share=Share(0, 1, 2), seed=1, args=Namespace(seed=1)
    )

    with open_loader(config.data, request) as loader:
        batches = list(loader.batches(0, 5))

    assert len(loader) == 5
    keys = [key for batch in batches for key in batch["keys"]]
    assert sorted(keys[:4]) == sorted(set(keys[:4]))
    for batch in batches:
        assert batch["mp4"].shape == (2, 9, 3, 32, 64)
        assert batch["mp4"].dtype == torch.uint8
        assert batch["num_frames"].tolist() == [9, 9]
        assert batch["txt"] == [f"picture {Path(key).stem}" for key in batch["keys"]]


def test_the_example_zooms_into_its_picture(pictures: Path) -> None:
    config = load(*WORDS, "--train-data", str(pictures))
    assert config.data is not None
    request = LoaderRequest(paths=config.data.train, share=Share(0, 1, 1), seed=1)

    with open_loader(config.data, request) as loader:
        clip = next(loader.batches(0, 1))["mp4"][0].float()

    # A bright square on black: the share of bright pixels grows with the square of the zoom.
    bright = (clip > 128).float().mean(dim=(1, 2, 3))
    assert bool((bright.diff() >= 0).all())
    assert float(bright[-1] / bright[0]) == pytest.approx(1.3**2, rel=0.15)


def test_a_changed_picture_changes_the_fingerprint(pictures: Path) -> None:
    from examples.still_images import StillImages

    def fingerprint() -> str:
        return StillImages(str(pictures), [32, 64], 9, 8.0).fingerprint()

    before = fingerprint()
    write_pictures(pictures, 6)

    assert fingerprint() != before
