"""Buckets: several clip sizes in one run, each clip at the size that loses least of it.

A bucket is (frames, rows, columns). Clips of one batch come from one bucket, because tensors of
one batch have one shape. Which bucket a clip goes to depends on its own size and length only;
the order in which buckets take turns is in `bucket_order.py`. Explained in docs/data.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from app.config.schema.data import Bucket
from app.config.schema.model import DiTConfig
from app.data.video.sizes import ClipSize
from app.errors import ConfigError

# Losses that differ by less do not decide: then the length does.
LOSS_STEP = 0.05


def best_bucket(
    clip: ClipSize, buckets: Sequence[Bucket], fps: float, skip_frames: int = 0
) -> int | None:
    """Number of the bucket for a clip; None when no bucket is as short as the clip.

    In this order: the bucket must be filled in time; it should cut away least of each frame
    (steps of 5%); it should not enlarge the frames; then longer, then larger ones win.
    """
    available = clip.frames_at(fps, skip_frames)
    fitting = [i for i, bucket in enumerate(buckets) if bucket.frames <= available]
    if not fitting:
        return None

    def rank(which: int) -> tuple[float, bool, int, int, int]:
        bucket = buckets[which]
        enlarges = bucket.rows > clip.rows or bucket.columns > clip.columns
        pixels = bucket.rows * bucket.columns
        lost = round(crop_loss(clip, bucket) / LOSS_STEP)
        return lost, enlarges, -bucket.frames, pixels if enlarges else -pixels, which

    return min(fitting, key=rank)


def crop_loss(clip: ClipSize, bucket: Bucket) -> float:
    """Share of a frame that resizing over the short side and cropping takes away."""
    own, target = clip.columns / clip.rows, bucket.columns / bucket.rows
    return 1.0 - min(own / target, target / own)  # two divisions: 1 / ratio rounds otherwise


def training_bucket(
    clip: ClipSize, buckets: Sequence[Bucket], fps: float, skip_frames: int = 0
) -> int:
    """As `best_bucket`; a clip shorter than all goes to a shortest one and is padded there."""
    found = best_bucket(clip, buckets, fps, skip_frames)
    if found is not None:
        return found
    shortest = min(bucket.frames for bucket in buckets)
    places = [i for i, bucket in enumerate(buckets) if bucket.frames == shortest]
    return min(places, key=lambda which: (crop_loss(clip, buckets[which]), which))


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
                fix=f"use batch_size {more} (batches {other}), or bucket_batch: fixed",
            )
    raise ConfigError(
        "no batch size makes the buckets take the same time",
        where="data.bucket_batch: cost",
        fix="choose buckets that differ less, or bucket_batch: fixed",
    )
