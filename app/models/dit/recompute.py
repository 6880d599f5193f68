"""Gradient checkpointing: keep one activation per segment of blocks, recompute the rest.

Source: Chen et al., arXiv:1604.06174. The forward pass of a segment is run again in the backward
pass; memory falls from all activations of all blocks to one hidden state per segment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from app.models.dit.block import BlockContext


@dataclass(frozen=True)
class RecomputePlan:
    """Which blocks are recomputed. Key names of upstream's `transformer_args` in comments."""

    enabled: bool  # checkpoint_activations
    blocks_per_segment: int  # checkpoint_num_layers
    kept_blocks: int  # checkpoint_skip_layers: the last ones, whose activations are used first
    keeps_random_state: bool  # only needed when blocks draw random numbers (LoRA dropout)


def segments(num_blocks: int, plan: RecomputePlan) -> Iterator[tuple[range, bool]]:
    """Ranges of blocks in order, and whether each is recomputed."""
    recomputed = num_blocks - plan.kept_blocks if plan.enabled else 0
    for start in range(0, recomputed, plan.blocks_per_segment):
        yield range(start, min(start + plan.blocks_per_segment, recomputed)), True
    if recomputed < num_blocks:
        yield range(recomputed, num_blocks), False


def run_blocks(
    blocks: Sequence[nn.Module], tokens: Tensor, context: BlockContext, plan: RecomputePlan
) -> Tensor:
    """Apply all blocks to tokens (B, S, h).

    With frozen embeddings (LoRA only) `tokens` needs no gradient; the non-reentrant checkpoint
    still records the parameters used inside, so adapters of the first block get their gradient.
    """
    for indices, recomputed in segments(len(blocks), plan):
        run = _chain([blocks[index] for index in indices], context)
        if recomputed:
            tokens = checkpoint(
                run, tokens, use_reentrant=False, preserve_rng_state=plan.keeps_random_state
            )
        else:
            tokens = run(tokens)
    return tokens


def _chain(blocks: Sequence[nn.Module], context: BlockContext) -> Callable[[Tensor], Tensor]:
    def run(tokens: Tensor) -> Tensor:
        for block in blocks:
            tokens = block(tokens, context)
        return tokens

    return run
