"""Open run folders and what lies in them, for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from app.checkpoint.attempts import AttemptRecord
from app.checkpoint.layout import CheckpointRef
from app.run.attempt.folder import RunFolder
from app.storage.local import LocalStorage

WORLD = {"world_size": 1, "micro_batch": 2}


def run_folder(root: Path, *, attempt: int = 1, newest: CheckpointRef | None = None) -> RunFolder:
    """An attempt as `open_run` gives it, without writing anything."""
    begun = AttemptRecord(
        number=attempt, owner="3f9c2a1b", started="2026-01-01T00:00:00", world=WORLD
    )
    return RunFolder(LocalStorage(root), begun, newest, config_sha256="c" * 64)


def read_json(root: Path, pattern: str) -> Any:
    """The one file that the pattern names."""
    (path,) = root.glob(pattern)
    return json.loads(path.read_text())
