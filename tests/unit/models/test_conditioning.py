from __future__ import annotations

import pytest
import torch

from app.models.conditioning import Conditioning, joined


def test_unconditional_samples_come_first() -> None:
    zeros, ones = torch.zeros(2, 3, 4), torch.ones(2, 3, 4)

    both = joined(Conditioning(zeros), Conditioning(ones))

    assert torch.equal(both.text, torch.cat([zeros, ones]))
    assert both.image is None
    assert both.ofs is None


def test_image_and_ofs_are_joined_too() -> None:
    first = Conditioning(torch.zeros(2, 1, 1), torch.zeros(2, 1, 1, 1, 1), torch.tensor([2.0]))
    second = Conditioning(torch.zeros(2, 1, 1), torch.ones(2, 1, 1, 1, 1), torch.tensor([3.0, 4.0]))

    both = joined(first, second)

    assert both.image is not None
    assert both.image.flatten().tolist() == [0, 0, 1, 1]
    assert both.ofs is not None
    assert both.ofs.tolist() == [2, 2, 3, 4]


def test_one_half_without_an_image_is_a_mistake_of_ours() -> None:
    image = Conditioning(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1, 1, 1))

    with pytest.raises(AssertionError):
        joined(Conditioning(torch.zeros(1, 1, 1)), image)
