"""The light client: what it can do alone, and what it says where it needs more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from app.cli import main as entry
from tests.support.configs import ROOT, TINY


def test_a_missing_library_names_the_extra_that_brings_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "helm_python", None)
    monkeypatch.delitem(sys.modules, "app.rehearsal.chart", raising=False)
    monkeypatch.delitem(sys.modules, "app.rehearsal.demo", raising=False)

    code = entry.main(["demo", "--out", str(tmp_path / "out")])

    assert code == 66
    assert "cogvx-train[rehearse]" in capsys.readouterr().err


# What takes seconds to import, and a laptop or PID 1 may not have.
HEAVY = ("torch", "transformers", "deepspeed", "wandb")
PROGRAM = """
import sys
from app.cli.main import main
try:
    code = main(sys.argv[1:])
except SystemExit as end:
    code = end.code
print("loaded:", code, [name for name in %r if name in sys.modules])
"""
HELP = [[name, "--help"] for name in entry.COMMANDS] + [
    ["data", "check", "--help"],
    ["data", "pack", "--help"],
    ["data", "quarantine", "--help"],
    ["weights", "put", "--help"],
    ["weights", "check", "--help"],
]
LIGHT = [
    ["config", "check", *TINY],
    ["config", "show", "--origin", *TINY],
    ["config", "arguments", "--json"],
    ["doctor", "--json"],
    ["launch", "doctor", "--json"],
    ["storage", "ls", "configs"],
    ["data", "quarantine", "no/such/run"],
    ["data", "check", "configs", "--fps", "none"],
    ["train", *TINY, "--no-such-flag"],
]


@pytest.mark.parametrize("words", [["--help"], *HELP, *LIGHT], ids=" ".join)
def test_help_and_the_light_commands_load_no_heavy_library(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM % (HEAVY,), *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )

    last = done.stdout.splitlines()[-1]
    assert last.startswith("loaded: 0 " if "--help" in words else "loaded: "), done.stderr
    assert last.endswith(" []")


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    for number in range(4000):
        (tmp_path / f"object-{number}").touch()
    command = f"{sys.executable} -m app storage ls {tmp_path} | head -1"

    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60
    )

    assert done.stdout.startswith("       0 B  object-0")
    assert done.stderr == ""
