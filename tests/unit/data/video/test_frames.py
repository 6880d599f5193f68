from __future__ import annotations

import random

import numpy as np
import pytest

from app.data.bad_clip import BadClipError
from app.data.video import frames
from app.data.video.frames import FrameRequest


def even_times(count: int, fps: float) -> np.ndarray:
    return np.arange(count) / fps


def test_same_rate_takes_every_frame_from_the_skipped_one_on() -> None:
    picked = frames.exact(even_times(60, 8.0), FrameRequest(49, 8.0, 3))

    assert picked.frames == tuple(range(3, 52))
    assert picked.num_frames == 49


def test_thirty_to_eight_keeps_the_true_rate() -> None:
    picked = frames.exact(even_times(300, 30.0), FrameRequest(49, 8.0, 3))

    # On the screen at second i / 8: frame floor(30 i / 8).
    assert picked.frames == tuple(3 + 30 * i // 8 for i in range(49))


def test_slow_video_repeats_frames() -> None:
    picked = frames.exact(even_times(40, 4.0), FrameRequest(17, 8.0))

    assert picked.frames == tuple(i // 2 for i in range(17))
    assert picked.num_frames == 17


def test_uneven_times_show_what_a_player_shows() -> None:
    times = np.array([0.0, 0.1, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5])

    picked = frames.exact(times, FrameRequest(5, 4.0))

    assert picked.frames == (0, 1, 1, 1, 2)  # at 0, .25, .5, .75, 1.0


def test_times_rounded_to_milliseconds_pick_the_same_frames() -> None:
    true = even_times(200, 29.97)

    picked = frames.exact(np.round(true, 3), FrameRequest(81, 29.97))

    assert picked.frames == tuple(range(81))


@pytest.mark.parametrize(("count", "kept"), [(30, 21), (49 + 5, 45), (10, 1), (7, 1), (49 + 6, 49)])
def test_short_video_gives_four_k_plus_one_frames_and_padding(count: int, kept: int) -> None:
    picked = frames.exact(even_times(count, 8.0), FrameRequest(49, 8.0, 3))

    assert picked.num_frames == kept
    assert picked.frames[:kept] == tuple(range(3, 3 + kept))
    assert set(picked.frames[kept:]) <= {2 + kept}
    assert len(picked.frames) == 49


@pytest.mark.parametrize("count", [0, 5, 6])
def test_no_frame_left_is_a_bad_clip(count: int) -> None:
    with pytest.raises(BadClipError) as caught:
        frames.exact(even_times(count, 8.0), FrameRequest(49, 8.0, 3))

    assert caught.value.reason == "too_short"


def test_times_out_of_order_are_a_bad_clip() -> None:
    with pytest.raises(BadClipError) as caught:
        frames.exact(np.array([0.0, 0.2, 0.1]), FrameRequest(1, 8.0))

    assert caught.value.reason == "bad_timestamps"


def test_random_crop_stays_inside_and_is_the_same_for_the_same_key() -> None:
    times, request = even_times(300, 25.0), FrameRequest(17, 8.0, 2)

    picks = [frames.exact(times, request, random.Random(key)) for key in range(50)]

    assert frames.exact(times, request, random.Random(7)) == picks[7]
    assert len({pick.frames[0] for pick in picks}) > 20
    assert min(pick.frames[0] for pick in picks) >= 2
    assert max(pick.frames[-1] for pick in picks) <= 297
    assert {pick.num_frames for pick in picks} == {17}


def test_upstream_rule_refuses_what_is_slower_than_wanted() -> None:
    with pytest.raises(BadClipError) as caught:
        frames.sat_folder(200, 6.0, FrameRequest(49, 8.0, 3))

    assert caught.value.reason == "too_slow"
