"""`python -m app` is the command `cogvx`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from app import __version__

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("word", "code"), [("--version", 0), ("--no-such-flag", 2)])
def test_the_module_runs_the_command_and_passes_its_exit_code_on(word: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "app", word],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == code
    assert done.stdout == (f"{__version__}\n" if code == 0 else "")
