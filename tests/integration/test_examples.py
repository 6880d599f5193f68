"""The example dataset in a whole training run."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.support.configs import ROOT
from tests.support.pictures import write_pictures
from tests.support.tiny_run import TinyWorld, cogvx, numbers_of_steps


@pytest.mark.slow
def test_a_run_trains_on_the_example_dataset(world: TinyWorld, tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures", 5)
    words = world.words("stills", "args.train_iters=2", f"args.train_data=[{pictures}]")
    place = words.index("--run-id")
    words[place:place] = [str(ROOT / "examples" / "still_images.yaml")]
    words += ["--register", "stills=examples.still_images:StillImages"]
    words += ["data.params.video_size=[32,64]", "data.params.max_num_frames=9"]

    ended = cogvx(words, world.environment(tmp_path / "scratch"))

    assert ended.code == 0, ended.err
    losses = [numbers["loss"] for numbers in numbers_of_steps(world.storage("stills")).values()]
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
