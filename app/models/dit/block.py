"""One transformer block: attention over text and image tokens together, then an MLP.

Axes: B batch, S = n + N tokens (n text tokens first, then N image tokens), h hidden width,
A heads, d features of one head, e width of the time embedding.
Source: CogVideoX, arXiv:2408.06072, "Expert Adaptive Layernorm": text and image share all weights
and norms, but each gets its own shift, scale and gate from the time embedding.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from app.config.schema.model import DiTConfig
from app.distributed.rank_group import ALONE, enter
from app.models.dit.rotary import Rotation, rotate

BLOCK_NORM_EPS = 1e-5  # upstream sets 1e-6 and runs with 1e-5 (upstream_differences.md, M12)
HEAD_NORM_EPS = 1e-6


class TensorOptions(NamedTuple):
    """A device and dtype for new parameters; None is torch's default."""

    device: torch.device | str | None = None
    dtype: torch.dtype | None = None

    def options(self) -> dict[str, Any]:
        return self._asdict()


class BlockContext(NamedTuple):
    """What every block of one forward shares, computed once."""

    embedding: Tensor  # (B, e), after SiLU
    rotation: Rotation | None  # of all S tokens; None: no rotary embedding
    text_length: int  # n


def make_norm(config: DiTConfig, place: TensorOptions) -> nn.Module:
    """The norm over the hidden width that the blocks and the end of the transformer use."""
    if config.rms_norm:
        affine = config.elementwise_affine
        return nn.RMSNorm(
            config.hidden_size,
            eps=BLOCK_NORM_EPS,
            elementwise_affine=affine,
            **place.options(),
        )
    return layer_norm(config.hidden_size, BLOCK_NORM_EPS, config, place)


def layer_norm(width: int, eps: float, config: DiTConfig, place: TensorOptions) -> nn.LayerNorm:
    affine = config.elementwise_affine
    return nn.LayerNorm(width, eps=eps, elementwise_affine=affine, **place.options())


def modulate(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """tokens (B, S, h) * (1 + scale (B, h)) + shift (B, h)."""
    return tokens * (1 + scale[:, None]) + shift[:, None]


class Attention(nn.Module):
    """Full bidirectional attention over all tokens, no mask, scale 1/sqrt(d).

    `app.models.dit.parallel` divides the heads among the ranks of a group.
    """

    def __init__(self, config: DiTConfig, place: TensorOptions) -> None:
        super().__init__()
        width = config.hidden_size
        self.group = ALONE
        self.num_heads = config.num_attention_heads  # of this rank
        self.q = nn.Linear(width, width, **place.options())
        self.k = nn.Linear(width, width, **place.options())
        self.v = nn.Linear(width, width, **place.options())
        self.out = nn.Linear(width, width, **place.options())
        self.norm_q: nn.Module = nn.Identity()
        self.norm_k: nn.Module = nn.Identity()
        if config.qk_norm:
            self.norm_q = layer_norm(config.head_dim, HEAD_NORM_EPS, config, place)
            self.norm_k = layer_norm(config.head_dim, HEAD_NORM_EPS, config, place)

    def forward(self, tokens: Tensor, rotation: Rotation | None) -> Tensor:
        """(B, S, h) -> (B, S, h); `rotation` (S, d) is applied to queries and keys."""
        tokens = enter(tokens, self.group)
        q = self.norm_q(self._heads(self.q(tokens)))
        k = self.norm_k(self._heads(self.k(tokens)))
        v = self._heads(self.v(tokens))
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(rearrange(mixed, "B A S d -> B S (A d)"))

    def _heads(self, tokens: Tensor) -> Tensor:
        return rearrange(tokens, "B S (A d) -> B A S d", A=self.num_heads)


class MLP(nn.Module):
    """Linear, tanh-approximated GELU, Linear; with `swiglu`: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: DiTConfig, place: TensorOptions) -> None:
        super().__init__()
        outer, inner = config.hidden_size, config.inner_hidden_size
        self.group = ALONE  # the ranks that share the inner features
        self.up = nn.Linear(outer, inner, **place.options())
        self.down = nn.Linear(inner, outer, **place.options())
        self.gate = (
            nn.Linear(outer, inner, bias=False, **place.options()) if config.swiglu else None
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, S, h) -> (B, S, h)."""
        tokens = enter(tokens, self.group)
        if self.gate is None:
            inner = nn.functional.gelu(self.up(tokens), approximate="tanh")
        else:
            inner = nn.functional.silu(self.gate(tokens)) * self.up(tokens)
        return self.down(inner)


class Block(nn.Module):
    """Norm, modulate, attend, gate, add; norm, modulate, MLP, gate, add."""

    def __init__(self, config: DiTConfig, place: TensorOptions) -> None:
        super().__init__()
        self.norm_attention = make_norm(config, place)
        self.norm_mlp = make_norm(config, place)
        # Twelve parts of h rows: shift, scale and gate of the attention, then of the MLP, for the
        # image tokens; then the same six for the text tokens.
        self.modulation = nn.Linear(
            config.time_embed_dim, 12 * config.hidden_size, **place.options()
        )
        self.attention = Attention(config, place)
        self.mlp = MLP(config, place)

    def forward(self, tokens: Tensor, context: BlockContext) -> Tensor:
        """(B, S, h) -> (B, S, h)."""
        parts = self.modulation(context.embedding).chunk(12, dim=1)
        attention = _Modulation(image=parts[0:3], text=parts[6:9], n=context.text_length)
        mlp = _Modulation(image=parts[3:6], text=parts[9:12], n=context.text_length)

        normed = attention.apply(self.norm_attention(tokens))
        mixed = self.attention(normed, context.rotation)
        tokens = tokens + attention.gated(mixed)

        normed = mlp.apply(self.norm_mlp(tokens))
        return tokens + mlp.gated(self.mlp(normed))


class _Modulation(NamedTuple):
    """Shift, scale, gate, each (B, h), for image and for text tokens; n text tokens come first."""

    image: tuple[Tensor, ...]
    text: tuple[Tensor, ...]
    n: int

    def apply(self, tokens: Tensor) -> Tensor:
        text = modulate(tokens[:, : self.n], self.text[0], self.text[1])
        image = modulate(tokens[:, self.n :], self.image[0], self.image[1])
        return torch.cat([text, image], dim=1)

    def gated(self, tokens: Tensor) -> Tensor:
        text = self.text[2][:, None] * tokens[:, : self.n]
        image = self.image[2][:, None] * tokens[:, self.n :]
        return torch.cat([text, image], dim=1)
