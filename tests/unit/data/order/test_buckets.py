from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.config.schema.data import Bucket, parse_bucket
from app.config.schema.model import DiTConfig
from app.data.order.buckets import (
    balanced_batches,
    batches_by_cost,
    best_bucket,
    clip_cost,
    crop_loss,
    spread,
    tokens_of,
    training_bucket,
)
from app.data.video.sizes import ClipSize
from app.errors import ConfigError
from tests.support.configs import base, load

WIDE, TALL, SQUARE = (480, 720), (720, 480), (576, 576)
BUCKETS = [Bucket(frames, *size) for frames in (49, 17) for size in (WIDE, TALL, SQUARE)]


def named(clip: ClipSize, fps: float = 8.0, skip: int = 0) -> str | None:
    which = best_bucket(clip, BUCKETS, fps, skip)
    return None if which is None else str(BUCKETS[which])


@pytest.mark.parametrize(
    ("rows", "columns", "seconds", "bucket"),
    [
        (1080, 1920, 10.0, "49x480x720"),
        (1920, 1080, 10.0, "49x720x480"),
        (1000, 1000, 10.0, "49x576x576"),
        (1080, 1920, 5.0, "17x480x720"),
        (1920, 1080, 2.2, "17x720x480"),
        (1080, 1920, 2.0, None),
        # Shapes between: 1.2 loses 17% as a square and 20% as 3:2.
        (1000, 1200, 10.0, "49x576x576"),
        (1000, 1400, 10.0, "49x480x720"),
    ],
)
def test_a_clip_goes_where_least_of_it_is_lost(
    rows: int, columns: int, seconds: float, bucket: str | None
) -> None:
    assert named(ClipSize(rows, columns, round(24 * seconds), 24.0)) == bucket


def test_a_bucket_must_be_filled_after_skipping_both_ends() -> None:
    clip = ClipSize(480, 720, 49, 8.0)

    assert named(clip) == "49x480x720"
    assert named(clip, skip=1) == "17x480x720"
    assert named(clip, fps=16.0) == "49x480x720"
    assert named(clip, fps=7.9) == "17x480x720"


def test_a_small_clip_is_not_enlarged_where_a_smaller_bucket_fits() -> None:
    sizes = [Bucket(17, 480, 720), Bucket(17, 240, 368)]

    assert best_bucket(ClipSize(360, 540, 80, 8.0), sizes, 8.0) == 1
    assert best_bucket(ClipSize(720, 1080, 80, 8.0), sizes, 8.0) == 0
    assert best_bucket(ClipSize(100, 150, 80, 8.0), sizes, 8.0) == 1


def test_a_clip_shorter_than_all_trains_in_a_shortest_bucket() -> None:
    which = training_bucket(ClipSize(1920, 1080, 9, 8.0), BUCKETS, 8.0)

    assert str(BUCKETS[which]) == "17x720x480"


@given(st.integers(16, 4000), st.integers(16, 4000), st.integers(1, 2000), st.floats(1, 120))
def test_every_clip_has_one_bucket_for_training(
    rows: int, columns: int, frames: int, fps: float
) -> None:
    clip = ClipSize(rows, columns, frames, fps)

    which = training_bucket(clip, BUCKETS, 8.0)

    fits = [b for b in BUCKETS if b.frames <= clip.frames_at(8.0)]
    longest = max((b.frames for b in fits), default=17)
    assert BUCKETS[which].frames <= longest
    best = min(crop_loss(clip, bucket) for bucket in fits or BUCKETS)
    assert crop_loss(clip, BUCKETS[which]) <= best + 0.05


@pytest.mark.parametrize(
    "text", ["48x480x720", "49x481x720", "0x16x16", "49x480", "axbxc", "49x480x0"]
)
def test_sizes_that_cannot_be_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_bucket(text)


def test_a_bucket_is_written_as_text_or_numbers() -> None:
    assert parse_bucket("49x480x720") == parse_bucket([49, 480, 720]) == Bucket(49, 480, 720)


# the cost model


def network() -> DiTConfig:
    model = load(*base("cogvideox_5b", "sft")).model
    assert model is not None
    assert isinstance(model.network.params, DiTConfig)
    return model.network.params


def test_tokens_and_cost_of_the_stock_clip() -> None:
    stock, config = Bucket(49, 480, 720), network()

    assert tokens_of(stock, config, 226) == 226 + 13 * 30 * 45
    # 5B: 42 layers of width 3072; attention is 2 * N^2 * h multiplications of each layer.
    tokens, hidden = 17776, 3072
    multiplications = 42 * (tokens * 12 * hidden**2 + 2 * tokens**2 * hidden)
    assert clip_cost(stock, config, 226) == pytest.approx(2 * multiplications)


def test_batches_by_cost_take_the_same_time_within_a_tenth() -> None:
    config = network()
    costs = [clip_cost(bucket, config, 226) for bucket in BUCKETS]

    batches = batches_by_cost(costs, batch=32, parts=8)

    assert batches[0] == 32
    assert all(batch % 8 == 0 for batch in batches)
    times = [batch * cost for batch, cost in zip(batches, costs, strict=True)]
    assert min(times) >= 0.9 * max(times)


@given(
    st.lists(st.floats(1.0, 30.0), min_size=1, max_size=8),
    st.integers(1, 64),
)
def test_balanced_batches_are_within_a_tenth_or_refused(costs: list[float], batch: int) -> None:
    found = balanced_batches(costs, batch)

    if found is None:
        # Nothing finer than single clips exists: the nearest whole numbers are too far apart.
        nearest = [max(1, round(batch * max(costs) / cost)) for cost in costs]
        assert spread(nearest, costs) > 0.1
    else:
        assert spread(found, costs) <= 0.1
        assert found[costs.index(max(costs))] == batch


def test_a_batch_too_small_for_equal_times_names_one_that_does() -> None:
    with pytest.raises(ConfigError) as caught:
        batches_by_cost([3.0, 2.0], batch=8, parts=8)

    assert "use batch_size 2 (batches [16, 24])" in caught.value.fix


@pytest.mark.parametrize(
    ("rows", "columns", "sizes", "which"),
    [
        (1080, 1920, ((384, 432), (432, 480)), 1),
        (240, 320, ((480, 400), (480, 384)), 0),
    ],
)
def test_a_loss_between_two_steps_keeps_its_side(
    rows: int, columns: int, sizes: tuple[tuple[int, int], ...], which: int
) -> None:
    """The bucket is part of the data's identity: a run continues only with the same one."""
    buckets = [Bucket(49, *size) for size in sizes]

    assert best_bucket(ClipSize(rows, columns, 80, 8.0), buckets, 8.0) == which
