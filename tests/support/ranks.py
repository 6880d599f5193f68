"""Several ranks as threads of this process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

WAIT_S = 30.0


class _Shared:
    def __init__(self, world_size: int) -> None:
        self.change = threading.Condition()
        self.payloads: dict[tuple[str, int], bytes] = {}
        self.gate = threading.Barrier(world_size)


class ThreadExchange:
    """The checkpoint writer's Exchange between threads."""

    def __init__(self, rank: int, world_size: int, shared: _Shared) -> None:
        self.rank = rank
        self.world_size = world_size
        self._shared = shared

    def gather(self, key: str, payload: bytes) -> list[bytes]:
        with self._shared.change:
            assert (key, self.rank) not in self._shared.payloads, "a key is used once"
            self._shared.payloads[key, self.rank] = payload
            self._shared.change.notify_all()
            if self.rank:
                return []
            keys = [(key, rank) for rank in range(self.world_size)]
            there = self._shared.change.wait_for(
                lambda: all(k in self._shared.payloads for k in keys), WAIT_S
            )
            assert there, f"not all ranks sent {key}"
            return [self._shared.payloads[k] for k in keys]

    def barrier(self) -> None:
        self._shared.gate.wait(WAIT_S)


def run_ranks(world_size: int, call: Callable[[ThreadExchange], T]) -> list[T | Exception]:
    """What `call` returned or raised on each rank."""
    shared = _Shared(world_size)

    def one(rank: int) -> T | Exception:
        try:
            return call(ThreadExchange(rank, world_size, shared))
        except Exception as error:  # noqa: BLE001 (the test looks at it)
            return error

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(one, range(world_size)))
