from __future__ import annotations

import pytest

from app.data.loader import Lookahead


def announced(seconds: float, batch: int, per_batch_s: float, batches: int = 40) -> int:
    now = [0.0]
    ahead = Lookahead(seconds, clock=lambda: now[0])
    for _ in range(batches):
        now[0] += per_batch_s
        ahead.note(batch)
    return ahead.samples()


def test_as_many_samples_as_the_seconds_need_at_the_measured_rate() -> None:
    assert announced(120, batch=4, per_batch_s=2.0) == pytest.approx(240, abs=1)
    assert announced(60, batch=4, per_batch_s=2.0) == pytest.approx(120, abs=1)


def test_the_rate_is_that_of_the_last_batches() -> None:
    now = [0.0]
    ahead = Lookahead(100, clock=lambda: now[0])
    for pace in [10.0] * 50 + [0.5] * 32:
        now[0] += pace
        ahead.note(1)

    assert ahead.samples() == pytest.approx(200, abs=1)


def test_bounds_hold_before_the_rate_is_known_and_at_extreme_ones() -> None:
    assert announced(120, batch=4, per_batch_s=1.0, batches=3) == 512
    assert announced(120, batch=1, per_batch_s=1000.0) == 64
    assert announced(120, batch=64, per_batch_s=0.0) == 65536
