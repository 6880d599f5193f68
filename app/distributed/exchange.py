"""Bytes from every rank to rank 0 through the TCP store, at any time, during training steps.

Collectives must be called by all ranks in the same order; uploads of a checkpoint end at
any time. The store needs no order, so receipts travel through it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta

import torch.distributed as dist

from app.errors import RetryableError

CHUNK_BYTES = 1 << 20  # the store limits the size of one value to a few MB
POLL_S = 0.02


class StoreExchange:
    """Implements the checkpoint writer's Exchange over a torch.distributed store.

    Keys must not be used twice in one run. Waiting is polling: a blocking wait would hold the
    store's connection, which other threads share.
    """

    def __init__(
        self, store: dist.Store, *, rank: int, world_size: int, timeout_s: float = 1800.0
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self._store = dist.PrefixStore("exchange", store)
        self._store.set_timeout(timedelta(seconds=timeout_s))
        self._timeout_s = timeout_s
        self._barriers = 0

    def gather(self, key: str, payload: bytes) -> list[bytes]:
        """The payloads of all ranks in rank order on rank 0; an empty list elsewhere.

        Raises:
            RetryableError: the payload of a rank did not arrive in time.
        """
        if self.rank:
            self._send(f"gather/{key}/{self.rank}", payload)
            return []
        others = [self._receive(f"gather/{key}/{rank}") for rank in range(1, self.world_size)]
        return [payload, *others]

    def barrier(self) -> None:
        """Wait until every rank has called this as often as this one."""
        self._barriers += 1
        counter, done = f"barrier/{self._barriers}", f"barrier/{self._barriers}/done"
        if self._store.add(counter, 1) == self.world_size:
            self._store.set(done, "1")
        self._wait([done])

    def _send(self, key: str, payload: bytes) -> None:
        chunks = range(0, len(payload), CHUNK_BYTES)
        for index, start in enumerate(chunks):
            chunk = payload[start : start + CHUNK_BYTES]
            # The stub asks for str, but bytes of any value pass unchanged.
            self._store.set(f"{key}/{index}", chunk)  # type: ignore[arg-type]
        self._store.set(key, str(len(chunks)))  # last: its presence means that all chunks are there

    def _receive(self, key: str) -> bytes:
        self._wait([key])
        parts = [f"{key}/{index}" for index in range(int(self._store.get(key)))]
        payload = b"".join(self._store.get(part) for part in parts)
        for name in (*parts, key):
            self._store.delete_key(name)
        return payload

    def _wait(self, keys: Sequence[str]) -> None:
        deadline = time.monotonic() + self._timeout_s
        while not self._store.check(list(keys)):
            if time.monotonic() > deadline:
                raise RetryableError(
                    f"nothing received from a peer for {self._timeout_s:.0f} s",
                    where=f"rank {self.rank}, key {keys[0]!r} of the store",
                    fix="look at the logs of the other ranks",
                )
            time.sleep(POLL_S)
