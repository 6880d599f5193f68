from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from app.config.schema.model import PatchSize
from app.errors import ShapeError
from app.models.dit.tokens import grid_of, patchify, unpatchify

PATCH = PatchSize(frames=2, rows=2, columns=2)


def test_first_token_holds_the_first_patch_channel_first() -> None:
    latents = torch.arange(2 * 3 * 4 * 4, dtype=torch.float32).reshape(1, 2, 3, 4, 4)

    tokens = patchify(latents, PATCH)

    expected = latents[0, :, :, :2, :2].permute(1, 0, 2, 3).flatten()  # (C, o, p, q), by slicing
    torch.testing.assert_close(tokens[0, 0], expected)


def test_tokens_run_over_columns_first_and_frames_last() -> None:
    marks = torch.arange(2 * 3 * 5, dtype=torch.float32).reshape(1, 2, 1, 3, 5)
    latents = marks.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)

    tokens = patchify(latents, PatchSize(frames=1, rows=2, columns=2))

    torch.testing.assert_close(tokens[0, :, 0], torch.arange(30.0))


def test_a_linear_on_one_frame_patches_is_a_strided_convolution() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 7, kernel_size=2, stride=2)
    frame = torch.randn(1, 1, 3, 6, 8)

    tokens = patchify(frame, PatchSize(frames=1, rows=2, columns=2))
    mapped = nn.functional.linear(tokens, conv.weight.flatten(1), conv.bias)

    expected = conv(frame[:, 0]).flatten(2).transpose(1, 2)
    torch.testing.assert_close(mapped, expected)


@settings(max_examples=25, deadline=None)
@given(st.tuples(*[st.integers(1, 3)] * 7))
def test_unpatchify_is_the_inverse(sizes: tuple[int, ...]) -> None:
    t, h, w, o, p, q, channels = sizes
    patch = PatchSize(frames=o, rows=p, columns=q)
    latents = torch.arange(2 * t * o * channels * h * p * w * q).reshape(
        2, t * o, channels, h * p, w * q
    )

    back = unpatchify(patchify(latents, patch), grid_of(tuple(latents.shape), patch), patch)

    assert torch.equal(back, latents)


@pytest.mark.parametrize(("shape", "axis"), [((3, 4, 4), "T"), ((2, 5, 4), "H"), ((2, 4, 7), "W")])
def test_a_size_that_is_no_multiple_is_refused_by_axis(
    shape: tuple[int, int, int], axis: str
) -> None:
    T, H, W = shape

    with pytest.raises(ShapeError, match=f"axis {axis} ") as error:
        patchify(torch.zeros(1, T, 3, H, W), PATCH)

    assert "pad" in error.value.fix
