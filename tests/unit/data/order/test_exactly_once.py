"""Whole loaders, killed and continued on other ranks: plain, weighted, split and in buckets."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.config.schema.data import Bucket
from app.data.loader import Loader, LoaderSettings
from app.data.order.choice import OrderRequest, ordered
from app.data.order.cursor import Cursor
from app.data.order.share import Share
from app.data.sources.protocols import Source
from app.data.sources.views import JoinedSource, part_of
from app.data.video.clip import ClipShape
from app.data.video.frames import FrameRequest
from app.data.video.sizes import ClipSize

BUCKETS = (Bucket(9, 32, 48), Bucket(9, 48, 32), Bucket(5, 32, 48))
SIZES = (ClipSize(32, 48, 20, 8.0), ClipSize(48, 32, 20, 8.0), ClipSize(32, 48, 6, 8.0))


class Numbers(Source):
    """Shards of numbered samples whose size follows from their number."""

    configured = ClipShape(FrameRequest(9, 8.0), 32, 48)

    def __init__(self, counts: Sequence[int], name: str) -> None:
        self._counts = list(counts)
        self._name = name
        self.of = np.zeros(sum(counts), dtype=np.int64)

    @property
    def shapes(self) -> Numbers:
        return self

    def __len__(self) -> int:
        return sum(self._counts)

    def shard_sizes(self) -> Sequence[int]:
        return self._counts

    def fingerprint(self) -> str:
        return f"{self._name}{self._counts}"

    def sizes(self) -> list[ClipSize]:
        return [SIZES[index % 3] for index in range(len(self))]

    def use(self, shapes: Sequence[ClipShape], of: np.ndarray) -> None:
        self.of = of

    def read(self, index: int, position: int) -> dict[str, object]:
        return {"mp4": torch.tensor([self.of[index]]), "txt": "", "key": f"{self._name}{index}"}

    def close(self) -> None: ...


def loader_of(
    counts: Sequence[Sequence[int]],
    order_request: OrderRequest,
    workers: int,
    shares: Sequence[float],
) -> Loader:
    whole = [Numbers(part, "ab"[number]) for number, part in enumerate(counts)]
    sources: list[Source] = [part_of(one, shares, "train", "here") for one in whole]
    found = ordered(sources, order_request)
    return Loader(
        JoinedSource(sources),
        found.order,
        found.share,
        settings=LoaderSettings(workers, 2),
        identity=found.identity,
    )


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_killed_and_continued_loaders_give_the_undisturbed_stream(data: st.DataObject) -> None:
    check_stream(data)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None)
@given(data=st.data())
def test_loaders_killed_many_times_give_the_undisturbed_stream(data: st.DataObject) -> None:
    check_stream(data)


def check_stream(data: st.DataObject) -> None:
    """Each attempt has another world size, micro-batch, accumulation and number of workers."""
    counts = data.draw(
        st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), min_size=1, max_size=2)
    )
    for part in counts:
        part[0] += 4
    batch = data.draw(st.integers(1, 12))
    kind = data.draw(st.sampled_from(["plain", "weights", "buckets", "cost"]))
    shares = data.draw(st.sampled_from([(1.0, 0.0, 0.0), (0.7, 0.3, 0.0), (0.5, 0.25, 0.25)]))
    order_request = OrderRequest(
        share=Share(0, 1, batch),
        seed=data.draw(st.integers(0, 2**40)),
        lanes=data.draw(st.integers(1, 8)),
        window=data.draw(st.integers(1, 20)),
        weights=[3, 1][: len(counts)] if kind == "weights" else None,
        buckets=BUCKETS if kind in ("buckets", "cost") else (),
        cost=(lambda bucket: float(bucket.frames - 1)) if kind == "cost" else None,
    )
    whole = loader_of(counts, order_request, 0, shares)
    steps = min(whole.steps_for_epochs(2), 40)
    expected = [list(b["keys"]) for b in whole.batches(0, steps)]
    if kind in ("buckets", "cost"):
        assert all(len(set(b["mp4"].flatten().tolist())) == 1 for b in whole.batches(0, steps))

    # With batches by cost each one divides by the greatest common divisor only.
    unit = int(np.gcd.reduce([len(keys) for keys in expected])) if kind == "cost" else batch
    stream: dict[int, list[str]] = {}
    cursor = whole.cursor(0)
    while cursor.t < steps:
        parts = data.draw(st.sampled_from([p for p in range(1, unit + 1) if unit % p == 0]))
        world = data.draw(st.sampled_from([w for w in range(1, parts + 1) if parts % w == 0]))
        stop = min(steps, cursor.t + data.draw(st.integers(1, 9)))
        taken: dict[int, list[str]] = {step: [] for step in range(cursor.t, stop)}
        for rank in range(world):
            share = Share(rank, world, batch // parts, parts // world)
            loader = loader_of(
                counts, replace(order_request, share=share), data.draw(st.integers(0, 2)), shares
            )
            with loader:
                resumed = Cursor.from_json(json.loads(json.dumps(cursor.to_json())))
                resumed.check_continues(loader.cursor(resumed.t))
                batches = loader.batches(resumed.t, stop)
                for step in taken:
                    for _ in range(share.accumulation):
                        taken[step] += next(batches)["keys"]
        stream |= taken
        back = data.draw(st.integers(0, 2)) if stop < steps else 0
        cursor = whole.cursor(max(stop - back, 0))

    assert [stream[step] for step in range(steps)] == expected
    used = Counter(key for keys in expected for key in keys)
    if steps == whole.steps_for_epochs(2) and kind != "weights":
        assert len(used) == len(whole)
        assert min(used.values()) >= 2
