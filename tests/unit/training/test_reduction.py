"""Numbers of a step in one message. Several ranks: tests/distributed/test_loop.py."""

from __future__ import annotations

import pytest
import torch

from app.training.reduction import reduced

pytestmark = pytest.mark.usefixtures("groups")


def values(*numbers: float) -> list[torch.Tensor]:
    return [torch.tensor(number) for number in numbers]


def test_each_name_is_averaged_over_micro_steps() -> None:
    found = reduced({"loss": values(1.0, 3.0), "b": values(4.0)}, stop=False)

    assert found == {"loss": 2.0, "b": 4.0, "stop": 0.0, "news": 0.0}


def test_minus_100_means_absent() -> None:
    found = reduced({"some": values(-100.0, 3.0), "none": values(-100.0)}, stop=False)

    assert found == {"some": 3.0, "none": -100.0, "stop": 0.0, "news": 0.0}


def test_names_of_evaluation_are_left_out_and_a_stop_is_told() -> None:
    assert reduced({"loss": values(1.0), "eval_x": values(2.0)}, stop=True) == {
        "loss": 1.0,
        "stop": 1.0,
        "news": 0.0,
    }


def test_news_of_a_rank_are_told() -> None:
    assert reduced({"loss": values(1.0)}, stop=False, news=True)["news"] == 1.0


def test_bf16_is_summed_in_fp32() -> None:
    third = torch.tensor(1 / 3, dtype=torch.bfloat16)

    found = reduced({"loss": [third, third, third]}, stop=False)

    assert found["loss"] == pytest.approx(float(third), rel=1e-7)
