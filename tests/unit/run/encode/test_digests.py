"""Digests of weights: the numbers of sha256sum, and read once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

import app.run.encode.digests
from app.errors import InputMissingError
from app.run.encode.digests import listed, weights_sha256
from app.storage.local import LocalStorage


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalStorage:
    """An empty cache, on a node that knows nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "node"))
    return LocalStorage(tmp_path / "cache")


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_file_has_the_digest_that_sha256sum_shows(tmp_path: Path, root: LocalStorage) -> None:
    path = write(tmp_path / "w", {"vae.pt": b"weights"}) / "vae.pt"

    assert weights_sha256(str(path), root) == sha(b"weights")
    assert weights_sha256(f"file://{path}", root) == sha(b"weights")


def test_a_folder_has_the_digest_of_its_lines(tmp_path: Path, root: LocalStorage) -> None:
    files = {"model.safetensors": b"m", "config.json": b"c", "README.md": b"x", "sub/a.json": b"y"}
    folder = write(tmp_path / "t5", files)

    found = weights_sha256(str(folder), root)

    lines = f"{sha(b'c')}  config.json\n{sha(b'm')}  model.safetensors\n"
    assert found == sha(lines.encode())


def test_of_a_pipeline_only_the_text_encoder_counts(tmp_path: Path) -> None:
    wanted = [
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/spiece.model",
    ]
    others = ["model_index.json", "transformer/model.safetensors", "vae/config.json"]
    folder = write(tmp_path / "pipe", dict.fromkeys([*wanted, *others], b"x"))

    assert sorted(listed(str(folder))) == wanted


@pytest.mark.parametrize("keeps", [True, False])
def test_a_known_version_is_not_read_again(
    keeps: bool, tmp_path: Path, root: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "w", {"vae.pt": b"weights"}) / "vae.pt"
    weights_sha256(str(path), root, keeps=keeps)
    monkeypatch.setattr(app.run.encode.digests, "fetch", None)  # reading would fail

    assert weights_sha256(str(path), root) == sha(b"weights")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another-node"))
    if keeps:
        assert weights_sha256(str(path), root) == sha(b"weights")
    else:
        assert root.list() == []
        with pytest.raises(TypeError):
            weights_sha256(str(path), root)


def test_a_replaced_file_is_read_again(tmp_path: Path, root: LocalStorage) -> None:
    path = write(tmp_path / "w", {"vae.pt": b"weights"}) / "vae.pt"
    weights_sha256(str(path), root, keeps=True)
    path.write_bytes(b"others!")
    os.utime(path, (1, 1))

    assert weights_sha256(str(path), root, keeps=True) == sha(b"others!")


def test_what_is_not_there_has_no_digest(tmp_path: Path, root: LocalStorage) -> None:
    assert weights_sha256(str(tmp_path / "none.pt"), root) is None
    assert weights_sha256(str(write(tmp_path / "t5", {"README.md": b"x"})), root) is None
    with pytest.raises(InputMissingError):
        listed(str(tmp_path / "none.pt"))
