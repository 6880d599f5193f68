from __future__ import annotations

from pathlib import Path

import pytest

from app.storage.node_disk import node_folder


def test_the_cache_variable_names_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch/cache")

    assert node_folder("shards") == Path("/scratch/cache/cogvx/shards")


def test_without_it_the_temporary_folder_is_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    assert node_folder("vae") == tmp_path / "cogvx" / "vae"
