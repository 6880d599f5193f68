"""The light client: what it can do alone, and what it says where it needs more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from app.cli import main as entry
from tests.support.configs import ROOT


def test_a_missing_library_names_the_extra_that_brings_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "helm_python", None)
    monkeypatch.delitem(sys.modules, "app.rehearsal.chart", raising=False)
    monkeypatch.delitem(sys.modules, "app.rehearsal.demo", raising=False)

    code = entry.main(["demo", "--out", str(tmp_path / "out")])

    assert code == 66
    assert "cogvx-train[rehearse]" in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    for number in range(4000):
        (tmp_path / f"object-{number}").touch()
    command = f"{sys.executable} -m app storage ls {tmp_path} | head -1"

    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60
    )

    assert done.stdout.startswith("       0 B  object-0")
    assert done.stderr == ""
