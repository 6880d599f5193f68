from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.run.weights.runs import MakeRun, writer_of_runs


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Writes a run `runs/a` below the test's folder."""
    return writer_of_runs(tmp_path)
