"""Ranks survey a bucket of shards together: one lists, each scans a part, all know the same."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.rank_processes import outputs, run_processes
from tests.support.shards import samples, write_shard

SHARDS = 6


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    folder = tmp_path / "bucket"
    for number in range(SHARDS):
        write_shard(folder / f"x-{number}.tar", samples([f"{number}-{i}" for i in range(number)]))
    (folder / "x-3.meta.jsonl").write_text('{"key": "3-0"}\n')
    return folder


def surveyed(bucket: Path, tmp_path: Path) -> list[dict[str, Any]]:
    """What each of two ranks found."""
    command = ["tests/distributed/survey_peer.py", str(bucket), str(tmp_path / "cache")]
    return [json.loads(text) for text in outputs(run_processes(command, [0, 1], 2))]


def test_one_rank_lists_each_scans_a_part_and_all_know_the_same(
    bucket: Path, tmp_path: Path
) -> None:
    first, second = surveyed(bucket, tmp_path)

    assert first["shards"] == [[f"x-{number}.tar", number] for number in range(SHARDS)]
    digest = hashlib.sha256((bucket / "x-3.meta.jsonl").read_bytes()).hexdigest()
    assert first["sidecars"] == {"x-3.meta.jsonl": digest}
    assert {key: first[key] for key in ("shards", "sidecars", "entries")} == {
        key: second[key] for key in ("shards", "sidecars", "entries")
    }
    assert first["requests"]["list"] == 1
    assert "list" not in second["requests"]
    assert first["requests"]["range"] > 0
    assert second["requests"]["range"] > 0
    assert len(list(bucket.glob("*.index.json"))) == SHARDS

    # With a manifest, a start is one listing and one read, by one rank.
    first, second = surveyed(bucket, tmp_path)

    assert first["shards"] == [[f"x-{number}.tar", number] for number in range(SHARDS)]
    assert first["requests"] == {"list": 1, "read": 1}
    assert second["requests"] == {}


def test_what_one_rank_finds_wrong_ends_all_with_the_same_error(
    bucket: Path, tmp_path: Path
) -> None:
    shard = bucket / "x-5.tar"  # the second rank scans it
    shard.write_bytes(shard.read_bytes()[:1500])

    first, second = surveyed(bucket, tmp_path)

    assert first["error"] == second["error"]
    assert "x-5.tar" in first["error"]
