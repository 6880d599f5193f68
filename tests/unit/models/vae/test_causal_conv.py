"""Causal convolution: chunks, pieces, the repeated first frame."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from app.models.vae.causal_conv import CausalConv3d, conv_in_pieces


def clip(frames: int, channels: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.randn(2, channels, frames, 6, 5, generator=generator, dtype=torch.float64)


@pytest.fixture
def conv() -> CausalConv3d:
    torch.manual_seed(0)
    return CausalConv3d(4, 3, 3).double()


@pytest.mark.parametrize("cuts", [[5, 4], [3, 2, 2, 2], [1] * 9, [2, 1, 6]])
def test_chunks_give_the_same_frames_as_one_pass(conv: CausalConv3d, cuts: list[int]) -> None:
    video = clip(9)

    whole, past_of_whole = conv(video, None)
    past, done = None, []
    for chunk in video.split(cuts, dim=2):
        frames, past = conv(chunk, past)
        done.append(frames)

    torch.testing.assert_close(torch.cat(done, dim=2), whole)
    torch.testing.assert_close(past, past_of_whole)


def test_the_first_frame_stands_in_front_of_a_clip(conv: CausalConv3d) -> None:
    video = clip(4)
    padded = torch.cat([video[:, :, :1], video[:, :, :1], video], dim=2)

    frames, _ = conv(video, None)

    expected = nn.functional.conv3d(padded, conv.conv.weight, conv.conv.bias, padding=(0, 1, 1))
    torch.testing.assert_close(frames, expected)


def test_no_frame_sees_a_later_one(conv: CausalConv3d) -> None:
    video = clip(7)
    changed = video.clone()
    changed[:, :, 4:] += 1

    frames, _ = conv(video, None)
    others, _ = conv(changed, None)

    torch.testing.assert_close(others[:, :, :4], frames[:, :, :4], rtol=0, atol=0)
    assert not torch.allclose(others[:, :, 4:], frames[:, :, 4:])


def test_past_holds_the_last_frames_and_nothing_else(conv: CausalConv3d) -> None:
    video = clip(5)

    _, past = conv(video, None)

    torch.testing.assert_close(past, video[:, :, 3:])
    assert past.untyped_storage().nbytes() == past.numel() * past.element_size()


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("frames_per_piece", [1, 2, 3, 5, 8])
def test_pieces_do_not_change_the_result(kernel: int, frames_per_piece: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv3d(4, 3, kernel, padding=(0, kernel // 2, kernel // 2)).double()
    video = clip(8)
    past = clip(kernel - 1) if kernel > 1 else None
    frame_bytes = video[:, :, 0].numel() * video.element_size()

    pieces = conv_in_pieces(conv, video, past, piece_bytes=frames_per_piece * frame_bytes)

    expected = conv(video if past is None else torch.cat([past, video], dim=2))
    torch.testing.assert_close(pieces, expected)


def test_a_kernel_of_one_frame_needs_no_past() -> None:
    _, past = CausalConv3d(4, 3, 1).double()(clip(3), None)

    assert past.numel() == 0


@pytest.mark.parametrize("kernel", [1, 3])
def test_fp32_on_the_cpu_is_the_3d_convolution_of_torch(kernel: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv3d(4, 3, kernel, padding=(0, kernel // 2, kernel // 2))
    video = clip(8).float()

    result = conv_in_pieces(conv, video, None)

    torch.testing.assert_close(result, conv(video), rtol=0, atol=1e-5)
