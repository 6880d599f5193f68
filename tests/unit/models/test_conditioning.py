from __future__ import annotations

import torch

from app.models.conditioning import Conditioning


def test_samples_without_a_caption_come_first() -> None:
    ones = torch.ones(2, 3, 4, dtype=torch.bfloat16)

    both = Conditioning(ones).for_guidance()

    assert both.text.dtype == torch.bfloat16
    assert both.text.sum(dim=(1, 2)).tolist() == [0, 0, 12, 12]
    assert both.image is None
    assert both.ofs is None


def test_image_and_ofs_are_the_same_for_both_halves() -> None:
    image = torch.tensor([3.0, 4.0]).view(2, 1, 1, 1, 1)

    both = Conditioning(torch.ones(2, 1, 1), image, torch.tensor([5.0, 6.0])).for_guidance()

    assert both.image is not None
    assert both.image.flatten().tolist() == [3, 4, 3, 4]
    assert both.ofs is not None
    assert both.ofs.tolist() == [5, 6, 5, 6]


def test_one_ofs_for_all_samples_is_repeated_for_each() -> None:
    both = Conditioning(torch.ones(2, 1, 1), ofs=torch.tensor([2.0])).for_guidance()

    assert both.ofs is not None
    assert both.ofs.tolist() == [2, 2, 2, 2]
