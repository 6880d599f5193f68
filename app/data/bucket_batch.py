"""How many clips of each bucket make a batch, so that every batch takes about the same time.

The model of time counts the multiplications of the network: those that grow with the number of
tokens, and those of attention, which grow with its square. A batch of the most expensive bucket is
the run's own global batch; the cheaper ones get more clips.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from app.config.schema.data import Bucket
from app.config.schema.model import DiTConfig
from app.errors import ConfigError

MOST_SPREAD = 0.10  # (slowest - fastest) / slowest of modelled times
LATENT_STEP_PX = 8  # pixels per latent, rows and columns alike


def tokens_of(bucket: Bucket, network: DiTConfig, text_tokens: int) -> int:
    """Tokens of one clip with its caption."""
    latent_frames = (bucket.frames - 1) // network.time_compressed_rate + 1
    patch = network.patch
    frames = math.ceil(latent_frames / patch.frames)
    rows = bucket.rows // LATENT_STEP_PX // patch.rows
    columns = bucket.columns // LATENT_STEP_PX // patch.columns
    return text_tokens + frames * rows * columns


def clip_cost(bucket: Bucket, network: DiTConfig, text_tokens: int) -> float:
    """Multiplications and additions of one forward pass of one clip, in all layers.

    Per layer and token: q, k, v and the output take 4 h^2 multiplications, the MLP 2 h m; scores
    and sums of attention take 2 h for every other token.
    """
    tokens = tokens_of(bucket, network, text_tokens)
    hidden, inner = network.hidden_size, network.inner_hidden_size
    linear = 4 * hidden * hidden + 2 * hidden * inner
    attention = 2 * hidden * tokens
    return 2.0 * network.num_layers * tokens * (linear + attention)


def spread(batches: Sequence[int], costs: Sequence[float]) -> float:
    """(slowest - fastest) / slowest of the modelled times of a batch of each bucket."""
    times = [batch * cost for batch, cost in zip(batches, costs, strict=True)]
    return (max(times) - min(times)) / max(times)


def balanced_batches(costs: Sequence[float], batch: int) -> list[int] | None:
    """A batch for each bucket with times within 10%; None where `batch` is too small for that.

    All are multiples of one divisor of `batch`, the largest that allows it: so they divide by as
    many ranks as can be, and follow from the costs and the batch alone.
    """
    slowest = max(costs)
    for unit in (d for d in range(batch, 0, -1) if batch % d == 0):
        batches = [max(1, round(batch * slowest / cost / unit)) * unit for cost in costs]
        if spread(batches, costs) <= MOST_SPREAD:
            return batches
    return None


def batches_by_cost(costs: Sequence[float], batch: int, parts: int) -> list[int]:
    """The same, or an error that says which batch would do.

    Args:
        costs: of one clip of each bucket.
        batch: global batch of the run: that of the most expensive bucket.
        parts: ranks x accumulation; every batch must divide by it.

    Raises:
        ConfigError: no batches with times within 10%, or they do not divide.
    """
    found = balanced_batches(costs, batch)
    if found is not None and all(one % parts == 0 for one in found):
        return found
    micro = batch // parts
    for more in range(micro + 1, 64 * micro + 64):
        other = balanced_batches(costs, more * parts)
        if other is not None and all(one % parts == 0 for one in other):
            raise ConfigError(
                f"with a global batch of {batch} the buckets cannot take the same time "
                f"within {MOST_SPREAD:.0%}",
                where="data.bucket_batch: cost",
                mend=f"use batch_size {more} (batches {other}), or bucket_batch: fixed",
            )
    raise ConfigError(
        "no batch size makes the buckets take the same time",
        where="data.bucket_batch: cost",
        mend="choose buckets that differ less, or bucket_batch: fixed",
    )
