from __future__ import annotations

from pathlib import Path

import pytest

from app.data.indexing import index_shards
from app.data.shards.manifest import DatasetManifest
from app.errors import AccessDeniedError
from app.storage.local import LocalStorage
from tests.support.shards import samples, write_shard


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for number in range(3):
        write_shard(tmp_path / f"data/x-{number}.tar", samples([f"{number}-{i}" for i in range(2)]))
    return tmp_path / "data"


def test_headers_are_read_once_and_a_run_finds_the_manifest(shards: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    first = index_shards(str(shards), tmp_path, "caption", lambda *at: seen.append(at))
    again = index_shards(str(shards), tmp_path, "caption", lambda *at: seen.append(at))

    manifest = (shards / "dataset.manifest.json").read_bytes()
    assert len(DatasetManifest.from_json(manifest, "x").shards) == 3
    assert (first.shards, first.samples, first.left_out, first.scanned) == (3, 6, 0, 3)
    assert (again.samples, again.scanned) == (6, 0)
    assert first.manifests == (f"{shards}/dataset.manifest.json",)
    assert seen == [(3, 3)]


def test_shards_that_may_not_be_written_beside_are_an_error(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(storage: LocalStorage, key: str, data: bytes) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(LocalStorage, "write_small", refuse)

    with pytest.raises(AccessDeniedError, match="cannot be kept"):
        index_shards(str(shards), tmp_path, "caption", lambda *at: None)
