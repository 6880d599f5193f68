"""Fixtures of the integration tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.s3_servers import moto_server, rclone_server
from tests.support.tiny_run import TinyWorld, tiny_world

__all__ = ["moto_server", "rclone_server"]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyWorld]:
    """Shards and tiny weights on a server, for every run of the session."""
    with tiny_world(tmp_path_factory.mktemp("world")) as made:
        yield made
