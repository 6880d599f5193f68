"""3D convolution that looks only at the past, computed in bounded pieces of time.

Axes: B batch, C channels, T frames, H rows, W columns; tensors are (B, C, T, H, W) in this package.
Source: CogVideoX, arXiv:2408.06072, "3D Causal VAE". The first frame is repeated in front of a
clip; a later chunk of a clip is preceded by the last frames of the chunk before it.
"""

from __future__ import annotations

from functools import reduce
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

# Above 2 GiB of input one call needs a workspace of several times its size, and the element count
# of the widest feature map (128 channels, 49 frames, 480 x 720) no longer fits 32-bit indices.
PIECE_BYTES = 2 * 1024**3


def conv_in_pieces(
    conv: nn.Conv3d, x: Tensor, past: Tensor | None, piece_bytes: int = PIECE_BYTES
) -> Tensor:
    """Convolve `past` followed by `x`, a few frames at a time where the input is huge.

    Every piece of output frames reads the input frames that it needs, so the result does not
    depend on where the cuts are, not even for pieces of one frame.

    Args:
        conv: stride 1 and no padding in time; kernel of k frames.
        x: (B, C, T, H, W).
        past: (B, C, k - 1, H, W), the frames before `x`; None only if k is 1.
        piece_bytes: input size above which the work is cut along T.

    Returns:
        (B, C_out, T, H', W').
    """
    frames = x.shape[2]
    num_pieces = min(frames, -(-x.numel() * x.element_size() // piece_bytes))
    if num_pieces <= 1:
        return _convolve(conv, x if past is None else torch.cat([past, x], dim=2))
    bounds = [frames * i // num_pieces for i in range(num_pieces + 1)]
    first = _convolve(conv, _with_past(x, past, bounds[0], bounds[1]))
    out = first.new_empty(first.shape[0], first.shape[1], frames, *first.shape[3:])
    out[:, :, : bounds[1]] = first
    for start, stop in pairwise(bounds[1:]):
        out[:, :, start:stop] = _convolve(conv, _with_past(x, past, start, stop))
    return out


def _with_past(x: Tensor, past: Tensor | None, start: int, stop: int) -> Tensor:
    """Frames `start` to `stop` of `x`, with as many frames in front as `past` holds."""
    if past is None:
        return x[:, :, start:stop]
    length = past.shape[2]
    if start >= length:
        return x[:, :, start - length : stop]
    return torch.cat([past[:, :, start:], x[:, :, :stop]], dim=2)


def _convolve(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """`conv(x)`, five times faster for fp32 on the CPU.

    There torch has no fast 3D convolution, but a fast 2D one: one per frame of the kernel, added.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32:
        whole: Tensor = conv(x)
        return whole
    frames = x.shape[2] - conv.kernel_size[0] + 1
    by_frame = x.transpose(1, 2)
    parts = (
        functional.conv2d(
            by_frame[:, tap : tap + frames].flatten(0, 1),
            weight,
            conv.bias if tap == 0 else None,
            padding=conv.padding[1:],
        )
        for tap, weight in enumerate(conv.weight.unbind(2))
    )
    total = reduce(torch.add, parts)
    return total.unflatten(0, (x.shape[0], frames)).transpose(1, 2).contiguous()


class CausalConv3d(nn.Module):
    """Convolution with an odd kernel: causal in time, zero-padded in space, stride 1."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.past_frames = kernel - 1
        pad = kernel // 2
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, padding=(0, pad, pad))

    def forward(self, x: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """Convolve one chunk of a clip.

        Args:
            x: (B, C, T, H, W), T >= 1.
            past: (B, C, kernel - 1, H, W) as the chunk before returned it; None at the start of
                a clip, where the first frame is repeated.

        Returns:
            (B, C_out, T, H, W), and the past of the next chunk.
        """
        if self.past_frames == 0:
            return conv_in_pieces(self.conv, x, None), x[:, :, :0]
        if past is None:
            past = x[:, :, :1].expand(-1, -1, self.past_frames, -1, -1)
        recent = torch.cat([past, x[:, :, -self.past_frames :]], dim=2)
        # A copy: a view would keep the whole feature map alive until the next chunk.
        return conv_in_pieces(self.conv, x, past), recent[:, :, -self.past_frames :].clone()
