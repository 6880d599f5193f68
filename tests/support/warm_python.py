"""The command that runs Python with the trainer's libraries imported already."""

from __future__ import annotations

import sys
from pathlib import Path

_CLIENT = Path(__file__).with_name("warm_client.py")


def warm_python(*words: str) -> list[str]:
    """`python WORDS` for tests that start many trainers: a second instead of fifteen of CPU.

    What a start itself does (imports, caches, compilers) is tested with `sys.executable`.
    """
    return [sys.executable, "-I", "-S", str(_CLIENT), *words]
