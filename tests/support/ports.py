"""Ports for servers that start later: a gang's rank 0 first imports torch, which takes seconds."""

from __future__ import annotations

import os
import socket
from itertools import count

# Below what Linux hands out to whoever asks for any port, so that nobody gets one in between. Each
# worker of pytest-xdist has numbers of its own; two sessions on one machine begin at other places.
_FIRST, _LAST, _MOST_WORKERS = 10_000, 32_000, 16
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _MOST_WORKERS
_asked = count(os.getpid())


def reserved_port() -> int:
    """A loopback port on which nobody listens, not given out before or to another worker."""
    places = (_LAST - _FIRST) // _MOST_WORKERS
    for _ in range(places):
        port = _FIRST + next(_asked) % places * _MOST_WORKERS + _WORKER
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError(f"every port of worker {_WORKER} is taken")
