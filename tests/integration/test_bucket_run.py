"""A whole run with buckets, stopped and continued."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.support.clip_files import encode
from tests.support.tiny_run import TinyWorld, cogvx, numbers_of_steps


@pytest.fixture(scope="module")
def two_sizes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("two-sizes")
    (root / "labels").mkdir()
    for number in range(6):
        size = (32, 64) if number % 2 else (64, 32)
        encode(root / "videos" / f"{number}.mp4", size=size)
        (root / "labels" / f"{number}.txt").write_text(f"clip {number}")
    return root


def words_of(world: TinyWorld, run_id: str, data: Path, *more: str) -> list[str]:
    return world.words(
        run_id,
        f"args.train_data=[{data}]",
        "data.target=data_video.SFTDataset",
        "data.params=null",
        "data.params={video_size: [32, 64], fps: 8, max_num_frames: 9, skip_frms_num: 0}",
        "data.buckets=[9x32x64, 9x64x32, 5x64x32]",
        *more,
        model="tiny",
    )


@pytest.mark.slow
def test_a_run_with_buckets_trains_and_continues(
    world: TinyWorld, two_sizes: Path, tmp_path: Path
) -> None:
    environment = world.environment(tmp_path / "scratch")

    whole = cogvx(words_of(world, "b-whole", two_sizes, "args.train_iters=4"), environment)
    first = ("args.train_iters=4", "args.save_interval=2", "args.exit_interval=2")
    cogvx(words_of(world, "b-cut", two_sizes, *first), environment)
    rest = cogvx(words_of(world, "b-cut", two_sizes, "args.train_iters=4"), environment)

    assert whole.code == 0, whole.err
    assert rest.code == 0, rest.err
    numbers = numbers_of_steps(world.storage("b-whole"))
    assert len(numbers) == 4
    assert all(math.isfinite(step["loss"]) for step in numbers.values())
    assert numbers_of_steps(world.storage("b-cut")) == numbers


@pytest.mark.slow
def test_a_part_of_the_training_data_validates(
    world: TinyWorld, two_sizes: Path, tmp_path: Path
) -> None:
    more = (
        "args.split='70,30,0'",
        "args.valid_data=null",
        "args.eval_interval=1",
        "args.train_iters=1",
    )

    ended = cogvx(words_of(world, "b-split", two_sizes, *more), world.environment(tmp_path / "s"))

    assert ended.code == 0, ended.err
    assert "valid_loss" in ended.err
