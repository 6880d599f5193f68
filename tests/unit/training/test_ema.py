"""The moving average of master weights."""

from __future__ import annotations

import pytest
import torch

from app.training.ema import MovingAverage, ema_decay


def test_the_decay_grows_from_two_elevenths_to_its_limit() -> None:
    assert ema_decay(1, 0.9999) == 2 / 11
    assert ema_decay(2, 0.9999) == 3 / 12
    assert ema_decay(10**7, 0.9999) == 0.9999


def test_the_average_follows_the_weights_by_the_decay_of_each_update() -> None:
    weight = torch.zeros(3)
    average = MovingAverage([weight], decay=0.9999)

    weight.fill_(1.0)
    average.update()
    weight.fill_(2.0)
    average.update()

    first = 2 / 11 * 0.0 + 9 / 11 * 1.0
    second = 3 / 12 * first + 9 / 12 * 2.0
    assert average.of(weight).tolist() == pytest.approx([second] * 3)
    assert average.updates == 2


def test_it_starts_as_a_copy_and_not_as_the_weights_themselves() -> None:
    weight = torch.ones(2)
    average = MovingAverage([weight], decay=0.5)

    weight.zero_()

    assert average.of(weight).tolist() == [1.0, 1.0]


def test_a_restart_forgets_the_past() -> None:
    weight = torch.zeros(2)
    average = MovingAverage([weight], decay=0.5)
    weight.fill_(4.0)
    average.update()

    average.restart()

    assert average.of(weight).tolist() == [4.0, 4.0]
    assert average.updates == 0
