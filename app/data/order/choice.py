"""From opened sources to the order of a run: epochs, a mixture, upstream's, or buckets."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from app.config.schema.data import Bucket
from app.data.order.bucket_order import BucketOrder, share_of_buckets
from app.data.order.buckets import batches_by_cost, training_bucket
from app.data.order.cursor import Cursor
from app.data.order.orders import EpochOrder, MixedOrder, Order, SatOrder
from app.data.order.share import Share
from app.data.sources.protocols import Source
from app.data.video.clip import ClipShape
from app.data.video.sizes import ClipSize
from app.errors import ConfigError

log = logging.getLogger(__name__)

UPSTREAM = "sat"


@dataclass(frozen=True, kw_only=True, slots=True)
class OrderRequest:
    """What the order follows from, besides the data.

    `weights`: how often each source counts; None or equal ones: every sample once per epoch.
    `cost`: modelled time of a clip of a bucket, where batches follow it; None: one batch for all.
    """

    share: Share
    seed: int
    lanes: int
    window: int
    kind: str = "epoch"  # or "sat"
    weights: Sequence[int] | None = None
    buckets: Sequence[Bucket] = ()
    cost: Callable[[Bucket], float] | None = None


@dataclass(frozen=True, slots=True)
class Ordered:
    """The order, this rank's share of it, and the cursor at step 0, which names the sequence."""

    order: Order
    share: Share
    identity: Cursor


def ordered(sources: Sequence[Source], request: OrderRequest) -> Ordered:
    """The order of the samples of all sources.

    Raises:
        ConfigError: weights, buckets or batches that do not work.
        DataError: no sample.
    """
    weights = request.weights
    if weights is not None and len(weights) != len(sources):
        raise ConfigError(
            f"{len(weights)} weights for {len(sources)} datasets",
            where="args.train_data_weights",
            fix="give one weight per entry of train_data",
        )
    fingerprints = "\n".join(source.fingerprint() for source in sources)
    sha256 = hashlib.sha256(fingerprints.encode()).hexdigest()
    batch = request.share.batch
    if request.kind == UPSTREAM:
        if request.buckets:
            raise ConfigError(
                "upstream's order knows no buckets",
                where="data.buckets",
                fix="leave the buckets out, or use sample_order: epoch",
            )
        lengths = [len(source) for source in sources]
        sat = SatOrder(lengths, list(weights) if weights is not None else None)
        shares = tuple(weights or ())
        # This order knows neither seed nor lanes: they must not forbid a resume.
        identity = Cursor(0, 0, 1, 1, batch, sha256, order=UPSTREAM, shares=shares)
        return Ordered(sat, replace(request.share, interleaved=True), identity)
    counts = [list(source.shard_sizes()) for source in sources]
    if request.buckets:
        return _in_buckets(sources, counts, request, sha256)
    order = _over_all(counts, batch, request)
    shares = tuple(order.quotas) if isinstance(order, MixedOrder) else ()
    identity = Cursor(0, request.seed, order.lanes, request.window, batch, sha256, shares=shares)
    return Ordered(order, request.share, identity)


def _over_all(
    counts: Sequence[Sequence[int]], batch: int, request: OrderRequest
) -> EpochOrder | MixedOrder:
    """Every sample once per epoch, or a mixture by weights; datasets without a sample drop out."""
    weights = request.weights
    sizes = {"batch": batch, "lanes": request.lanes, "window": request.window}
    if weights is None or len(set(weights)) == 1:
        together = [size for part in counts for size in part]
        return EpochOrder(together, seed=request.seed, **sizes)
    pairs = [(part, weight) for part, weight in zip(counts, weights, strict=True) if sum(part)]
    # A weight is how often a dataset counts, so its share is weight times length, as upstream's.
    draws = [float(weight * sum(part)) for part, weight in pairs]
    return MixedOrder([part for part, _ in pairs], draws, seed=request.seed, **sizes)


def _in_buckets(
    sources: Sequence[Source], counts: Sequence[Sequence[int]], request: OrderRequest, sha256: str
) -> Ordered:
    """An order whose steps take one bucket each."""
    of = assigned(sources, request.buckets)
    share, buckets = request.share, list(request.buckets)
    filled = [which for which in range(len(buckets)) if bool((of == which).any())]
    batches = [share.batch] * len(buckets)
    if request.cost is not None and filled:
        costs = [request.cost(buckets[which]) for which in filled]
        parts = share.world_size * share.accumulation
        by_cost = batches_by_cost(costs, share.batch, parts)
        for which, size in zip(filled, by_cost, strict=True):
            batches[which] = size
    order = BucketOrder(
        counts, of, batches, lambda part, batch: _over_all(part, batch, request), request.seed
    )
    _report(order, buckets, of)
    # Which clip is where follows from sizes: another scan must not go unnoticed.
    digest = hashlib.sha256(sha256.encode() + of.astype("<i8").tobytes()).hexdigest()
    named = " ".join(f"{bucket}*{batches[which]}" for which, bucket in enumerate(buckets))
    identity = Cursor(0, request.seed, request.lanes, request.window, share.batch, digest)
    identity = replace(identity, order=f"buckets {named}", shares=tuple(request.weights or ()))
    return Ordered(order, share_of_buckets(share, order), identity)


def assigned(sources: Sequence[Source], buckets: Sequence[Bucket]) -> np.ndarray:
    """(N,) bucket of every sample, -1 for videos that cannot be used; the sources get the shapes.

    Raises:
        ConfigError: a source that reads clips at one size only.
    """
    together = []
    for source in sources:
        if source.shapes is None:
            raise ConfigError(
                f"{type(source).__name__} gives clips of one size",
                where="data.buckets",
                fix="leave the buckets out: a registered dataset has its own sizes",
            )
        request = source.shapes.configured.request
        places: dict[ClipSize | None, int] = {None: -1}  # sizes come again and again
        of = np.empty(len(source), dtype=np.int64)
        for index, size in enumerate(source.shapes.sizes()):
            if size not in places:
                assert size is not None
                places[size] = training_bucket(size, buckets, request.fps, request.skip_frames)
            of[index] = places[size]
        shapes = [
            ClipShape(replace(request, num_frames=bucket.frames), bucket.rows, bucket.columns)
            for bucket in buckets
        ]
        source.shapes.use(shapes, of)
        together.append(of)
    return np.concatenate(together)


def _report(order: BucketOrder, buckets: Sequence[Bucket], of: np.ndarray) -> None:
    for which, bucket in enumerate(buckets):
        facts = {"clips": order.samples_of_bucket(which), "batch": order.batches[which]}
        log.info("bucket", extra={"size": str(bucket), **facts})
    unusable = int(np.count_nonzero(of < 0))
    if unusable:
        log.warning(
            "videos without a size were left out (`cogvx data check` names them)",
            extra={"videos": unusable},
        )
