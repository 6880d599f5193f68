"""Parts of a step and the speed of a run."""

from __future__ import annotations

import pytest

from app.telemetry import timing
from app.telemetry.timing import Pace, PartTimes, clock_text


class Clock:
    """time.perf_counter under our hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", clock)
    return clock


def test_parts_add_up_until_they_are_taken(clock: Clock) -> None:
    times = PartTimes()

    for seconds in (1.0, 2.0):
        with times.part("forward"):
            clock.now += seconds
    times.add("save", 5.0)

    assert times.take() == {"forward": 3.0, "save": 5.0}
    assert times.take() == {}


def test_timers_are_started_and_stopped_as_upstreams(clock: Clock) -> None:
    times = PartTimes()

    times("data loader").start()
    clock.now += 0.5
    times("data loader").stop()

    assert times.take() == {"data loader": 0.5}


def test_a_part_that_fails_is_still_charged(clock: Clock) -> None:
    times = PartTimes()

    def fail() -> None:
        with times.part("save"):
            clock.now += 2.0
            raise KeyError("gone")

    with pytest.raises(KeyError):
        fail()

    assert times.take() == {"save": 2.0}


def test_speed_leaves_out_what_is_not_training(clock: Clock) -> None:
    pace = Pace(samples_per_step=4)

    for _ in range(5):
        clock.now += 2.0
        pace.step()
    clock.now += 30.0
    pace.aside(30.0)

    assert pace.take() == pytest.approx(2.0)
    assert pace.eta_s(100) == pytest.approx(200.0)


def test_without_a_step_there_is_no_speed_and_no_time_left() -> None:
    pace = Pace(samples_per_step=4)

    assert pace.take() != pace.take()  # NaN
    assert pace.eta_s(3) is None


def test_clock_text() -> None:
    assert [clock_text(s) for s in (0, 59.6, 3723)] == ["0:00:00", "0:01:00", "1:02:03"]
