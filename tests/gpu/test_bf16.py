"""The network in bf16, in which it trains, against itself in fp32."""

from __future__ import annotations

import pytest
import torch

from app.models.conditioning import Conditioning
from tests.parity import test_dit
from tests.parity.golden import Case, cases, name_of

LARGEST_ERROR = 2e-2  # of the largest output


def in_bf16(conditioning: Conditioning) -> Conditioning:
    image = conditioning.image
    return Conditioning(
        text=conditioning.text.bfloat16(),
        image=None if image is None else image.bfloat16(),
        ofs=conditioning.ofs,
    )


@pytest.mark.parametrize("case", cases(*test_dit.ITEMS), ids=name_of)
def test_bf16_is_close_to_fp32(case: Case) -> None:
    network = test_dit.network_of(case)
    x, timesteps, conditioning = test_dit.run_inputs(case, next(iter(case.json["runs"])))
    with torch.no_grad():
        exact = network(x, timesteps, conditioning)

        rounded = network.bfloat16()(x.bfloat16(), timesteps, in_bf16(conditioning))

    error = (rounded.float() - exact).norm() / exact.norm()
    assert rounded.dtype == torch.bfloat16
    assert error < LARGEST_ERROR, f"relative error {float(error):.4f}"
