"""Two processes of one node read samples from a latent cache: one of them looks, both know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from app.data.latent_cache import EncodePart, LatentCache, LatentEntry, SampleRecord, shard_key
from app.storage.local import LocalStorage
from tests.distributed.rank_processes import outputs, run_processes
from tests.distributed.table_peer import DATASET, SAMPLES, SETTINGS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A cache of as many samples as there are numbers of frames."""
    cache = LatentCache(lambda name: LocalStorage(tmp_path / "cache" / name), SETTINGS)
    moments = torch.zeros(1, 1, 1, 1)
    records = []
    for number in range(SAMPLES):
        key = cache.key_of(str(number), "")
        entry = LatentEntry(moments, moments, moments[0, 0], None, "", number, 8.0)
        data = entry.to_bytes(key)
        cache.storage.write_small(shard_key(key), data)
        records.append(SampleRecord(f"[{number}]", "now", key, len(data), f"clip {number}"))
    cache.write_records(DATASET, EncodePart(), records)
    return tmp_path


def reports(folder: Path, case: str) -> list[dict[str, Any]]:
    command = ["tests/distributed/table_peer.py", str(folder), case]
    ended = run_processes(command, ranks=[0, 1], world_size=2)
    return [json.loads(text) for text in outputs(ended)]


def test_one_process_of_a_node_reads_and_all_map_what_it_found(folder: Path) -> None:
    first, second = reports(folder, "shared")

    assert first["asked"] > 0
    assert second["asked"] == 0
    for report in (first, second):
        assert report["keys"] == ["clip 0", f"clip {SAMPLES - 1}"]
        assert report["num_frames"] == [0, SAMPLES - 1]
        assert report["left"] == []
    assert len(first["files"]) == 1
    assert first["files"] == second["files"]


def test_a_process_with_other_data_looks_itself(folder: Path) -> None:
    first, second = reports(folder, "other data")

    assert first["asked"] == second["asked"] > 0
    assert first["keys"] == second["keys"] == ["clip 0", f"clip {SAMPLES - 1}"]
    assert second["files"] == []


def test_an_error_of_the_reading_process_is_that_of_all(folder: Path) -> None:
    gone = next((folder / "cache").glob("*/shards/*/*"))
    gone.unlink()

    first, second = reports(folder, "gone")

    assert (first["code"], second["code"]) == (78, 78)
    assert first["what"] == second["what"]
    assert f"lacks 1 of {SAMPLES} clips" in first["what"]
    assert second["asked"] == 0
