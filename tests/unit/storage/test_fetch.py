from __future__ import annotations

from pathlib import Path

import pytest

from app.errors import ConfigError, InputMissingError
from app.storage.fetch import fetch


def test_a_local_path_is_itself(tmp_path: Path) -> None:
    (tmp_path / "vae.pt").write_bytes(b"x")

    assert fetch(str(tmp_path / "vae.pt"), tmp_path / "cache") == tmp_path / "vae.pt"
    assert fetch(f"file://{tmp_path}", tmp_path / "cache") == tmp_path
    assert not (tmp_path / "cache").exists()


def test_a_missing_local_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError, match=r"gone\.pt"):
        fetch(str(tmp_path / "gone.pt"), tmp_path / "cache")


def test_other_schemes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="https"):
        fetch("https://host/vae.pt", tmp_path)
