"""Payloads through a store, with ranks as threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from app.distributed.exchange import CHUNK_BYTES, StoreExchange
from app.errors import RetryableError


def exchanges(count: int, timeout_s: float = 20.0) -> list[StoreExchange]:
    store = dist.HashStore()
    return [
        StoreExchange(store, rank=rank, world_size=count, timeout_s=timeout_s)
        for rank in range(count)
    ]


def test_rank_zero_gets_every_payload_in_order_of_ranks() -> None:
    payloads = [b"", bytes([0, 255]) * CHUNK_BYTES, b"two"]  # of one, several and no chunks
    ranks = exchanges(3)

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda one: one.gather("k", payloads[one.rank]), ranks))

    assert found == [payloads, [], []]


def test_a_barrier_can_be_passed_again() -> None:
    def twice(one: StoreExchange) -> int:
        one.barrier()
        one.barrier()
        return one.rank

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(twice, exchanges(2))) == [0, 1]


def test_a_payload_that_does_not_come_names_its_key() -> None:
    with pytest.raises(RetryableError) as caught:
        exchanges(2, timeout_s=0.1)[0].gather("manifest", b"")

    assert "gather/manifest/1" in caught.value.where
