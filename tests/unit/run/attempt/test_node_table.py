"""A table that processes of a node share; what two of them do is in tests/distributed."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import numpy as np
import pytest

from app.data.latent_cache import SampleRecord
from app.data.latent_table import LatentTable, TableBuilder
from app.data.sources.registered import MapSource
from app.distributed.rank_group import RankGroup
from app.errors import ConfigError
from app.run.attempt import node_table
from app.run.attempt.node_table import NodePeers, once_per_node

MARK = bytes(range(16))
RECORD = SampleRecord("[0]", "", "ab" * 32, 7, "a.mp4")
SOURCE = MapSource([{}], "clips")


def made() -> LatentTable:
    builder = TableBuilder(1)
    builder.put(np.array([0]), [RECORD])
    return builder.finished()


def test_a_process_that_is_alone_writes_no_file(tmp_path: Path) -> None:
    table = once_per_node(NodePeers(), tmp_path / "node", SOURCE, made)

    assert table.record(0, "[0]") == RECORD
    assert not (tmp_path / "node").exists()


def test_a_folder_that_cannot_be_used_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "node").write_text("a file")
    monkeypatch.setattr(RankGroup, "gathered_json", lambda self, value: [value])

    with pytest.raises(ConfigError, match="the cache folder cannot be used") as caught:
        once_per_node(NodePeers(RankGroup(0, 2)), tmp_path / "node", SOURCE, made)

    assert caught.value.where == f"data.cache_dir: {tmp_path}/node"


def offer(descriptor: int, mark: bytes = MARK, **changes: object) -> list[object]:
    facts = {"host": socket.gethostname(), "fingerprint": SOURCE.fingerprint()} | changes
    return [*facts.values(), mark.hex(), os.getpid(), descriptor]


def test_a_file_without_a_name_is_opened_by_its_process_and_number() -> None:
    with tempfile.TemporaryFile() as file:
        made().write(file, MARK)

        table = node_table._opened([None, offer(file.fileno())], SOURCE)

    assert table is not None
    assert table.record(0, "[0]") == RECORD


def test_what_is_not_that_file_is_not_taken() -> None:
    read_end, write_end = os.pipe()
    with tempfile.TemporaryFile() as file, tempfile.TemporaryFile() as empty:
        made().write(file, MARK)
        number = file.fileno()
        others = [
            offer(number, MARK[::-1]),
            offer(number, host="another"),
            offer(number, fingerprint="of other data"),
            offer(empty.fileno()),
            offer(read_end),
            offer(1_000_000),
        ]

        assert node_table._opened([None, *others], SOURCE) is None

    os.close(read_end)
    os.close(write_end)
