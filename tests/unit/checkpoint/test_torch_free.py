from __future__ import annotations

import subprocess
import sys

import pytest

MODULES = [
    *("app.storage.opening", "app.storage.fetch", "app.rehearsal.embedded_s3"),
    *("app.checkpoint.layout", "app.checkpoint.attempts", "app.checkpoint.catalog"),
    *("app.checkpoint.manifest", "app.checkpoint.retention", "app.checkpoint.train_state"),
]


@pytest.mark.parametrize("module", MODULES)
def test_what_the_launcher_and_a_laptop_import_needs_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
