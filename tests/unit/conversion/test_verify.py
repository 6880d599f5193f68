from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from app.conversion.verify import check_forward, compare_tensors, network_output
from app.errors import WeightsError
from app.models.dit.transformer import DiffusionTransformer
from tests.support.networks import tiny

FP32 = {torch.float32}


def test_the_same_bits_are_equal_nan_and_negative_zero_included() -> None:
    tensors = {"a": torch.tensor([math.nan, -0.0, 1.0])}

    assert compare_tensors(tensors, {"a": tensors["a"].clone()}, "here") == ("bit for bit", 0.0)
    with pytest.raises(WeightsError, match="a has other values"):
        compare_tensors({"a": torch.tensor([-0.0])}, {"a": torch.tensor([0.0])}, "here")


def test_a_cast_is_named_with_its_largest_difference() -> None:
    source = {"a": torch.tensor([1.0, 1.0 + 2**-9])}

    found = compare_tensors(source, {"a": source["a"].bfloat16()}, "here")

    assert found == ("after the cast to bfloat16", 2**-9)


@pytest.mark.parametrize(("written", "what"), [({}, "a is missing"), ({"b": 1}, "is new|missing")])
def test_other_names_are_refused(written: dict[str, int], what: str) -> None:
    tensors = {name: torch.ones(1) for name in written}

    with pytest.raises(WeightsError, match=what):
        compare_tensors({"a": torch.ones(1)}, tensors, "here")


def test_outputs_may_differ_by_the_tolerance_of_the_dtype_only() -> None:
    source = torch.ones(4)

    assert check_forward(source, source + 5e-5, FP32, "here") == pytest.approx(5e-5, rel=0.01)
    with pytest.raises(WeightsError, match=r"the outputs differ by 0\.001"):
        check_forward(source, source + 1e-3, FP32, "here")
    check_forward(source, source + 1e-3, FP32 | {torch.float16}, "here")


def test_nan_in_one_output_alone_is_refused() -> None:
    nan = torch.tensor([math.nan, 1.0])

    assert check_forward(nan, nan.clone(), FP32, "here") == 0
    with pytest.raises(WeightsError):
        check_forward(torch.ones(2), nan, FP32, "here")


@pytest.mark.parametrize("kind", ["5b_i2v", "1.5_i2v"])
@pytest.mark.parametrize("size", [(2, 2), (2, 12), (8, 2)])
def test_the_clip_of_a_network_fits_its_learned_position_table(
    kind: str, size: tuple[int, int]
) -> None:
    config = tiny(kind)
    config = replace(
        config,
        position=replace(config.position, learnable=True),
        latent_height=size[0],
        latent_width=size[1],
        num_frames=1,
    )
    network = DiffusionTransformer(config)

    output = network_output(network.state_dict(), config)

    assert output.shape == (1, config.patch.frames, 16, *(min(4, side) for side in size))
