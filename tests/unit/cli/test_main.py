"""The entry point: help, unknown commands, errors as messages and exit codes."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from app import __version__
from app.cli import main as entry
from app.cli.main import COMMANDS, main
from app.errors import DataError
from tests.support.configs import ROOT

FAILURE = DataError("a shard is cut", where="s3://clips/a.tar", fix="upload it again")


def command(monkeypatch: pytest.MonkeyPatch, run: Callable[[argparse.Namespace], int]) -> None:
    """Let `cogvx doctor` be something else."""

    def configure(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--count", type=int, default=3)

    module = SimpleNamespace(configure=configure, run=run)
    monkeypatch.setattr(entry.importlib, "import_module", lambda name: module)


@pytest.mark.parametrize("word", ["--help", "-h", "help"])
def test_help_names_every_command(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = main([word])

    shown = capsys.readouterr().out
    assert code == 0
    assert all(f"  {name} " in shown and text in shown for name, (_, text) in COMMANDS.items())


def test_no_command_shows_the_help_and_is_a_wrong_use(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([]) == 2
    assert "usage: cogvx COMMAND" in capsys.readouterr().out


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


def test_unknown_command_is_2_with_three_lines(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["trian"])

    shown = capsys.readouterr()
    assert code == 2
    assert shown.out == ""
    assert shown.err.splitlines() == [
        "error: unknown command 'trian'",
        "  where: the command line",
        "  fix:   cogvx --help",
    ]


# The others take the arguments of a configuration too, and have help tests of their own.
PARSED_HERE = [
    name
    for name, (module, _) in COMMANDS.items()
    if not hasattr(importlib.import_module(module), "run_words")
]


@pytest.mark.parametrize("name", PARSED_HERE)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])

    assert ended.value.code == 0
    assert f"usage: cogvx {name}" in capsys.readouterr().out


def test_the_code_of_a_command_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    command(monkeypatch, lambda args: args.count)

    assert main(["doctor"]) == 3
    assert main(["doctor", "--count", "5"]) == 5


def test_flags_are_not_abbreviated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command(monkeypatch, lambda args: 0)

    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--cou", "5"])

    assert ended.value.code == 2
    assert "--cou" in capsys.readouterr().err


def test_an_error_of_the_user_is_a_message_a_cause_and_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(args: argparse.Namespace) -> int:
        raise FAILURE

    command(monkeypatch, run)
    monkeypatch.setenv("COGVX_STATUS_FILE", str(tmp_path / "status"))
    monkeypatch.setenv("LOCAL_RANK", "1")

    code = main(["doctor"])

    shown = capsys.readouterr()
    assert code == 65
    assert shown.out == ""
    assert shown.err == (
        "error: a shard is cut\n  where: s3://clips/a.tar\n  fix:   upload it again\n"
    )
    cause = json.loads((tmp_path / "status.1").read_text())
    assert (cause["exit_code"], cause["what"]) == (65, "a shard is cut")


def test_a_bug_of_ours_keeps_its_traceback_and_leaves_a_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(args: argparse.Namespace) -> int:
        raise ZeroDivisionError("division by zero")

    command(monkeypatch, run)
    monkeypatch.setenv("COGVX_STATUS_FILE", str(tmp_path / "status"))
    monkeypatch.delenv("LOCAL_RANK", raising=False)

    with pytest.raises(ZeroDivisionError):
        main(["doctor"])

    cause = json.loads((tmp_path / "status.0").read_text())
    assert cause["exit_code"] == 1
    assert "ZeroDivisionError: division by zero" in cause["what"]


@pytest.mark.parametrize(
    ("given", "code"),
    [(0, 1), (None, 1), (7, 1), (66, 66), ("no clips", 1)],
)
def test_a_class_of_the_user_that_ends_the_process_leaves_a_cause_and_does_not_succeed(
    given: object,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(args: argparse.Namespace) -> int:
        sys.exit(given)  # type: ignore[arg-type]

    command(monkeypatch, run)
    monkeypatch.setenv("COGVX_STATUS_FILE", str(tmp_path / "status"))
    monkeypatch.delenv("LOCAL_RANK", raising=False)

    assert main(["doctor"]) == code

    cause = json.loads((tmp_path / "status.0").read_text())
    assert cause["exit_code"] == code
    assert "SystemExit" in cause["what"]
    assert Path(__file__).name in cause["where"]
    assert cause["what"] in capsys.readouterr().err


def test_so_does_one_in_a_command_with_a_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = SimpleNamespace(run_words=lambda words: sys.exit(0))
    monkeypatch.setattr(entry.importlib, "import_module", lambda name: module)
    monkeypatch.setenv("COGVX_STATUS_FILE", str(tmp_path / "status"))
    monkeypatch.delenv("LOCAL_RANK", raising=False)

    assert main(["train", "--base", "a.yaml"]) == 1
    assert json.loads((tmp_path / "status.0").read_text())["exit_code"] == 1


@pytest.mark.parametrize("library", ["braceexpand", "PIL"])
def test_a_missing_library_names_its_extra_and_leaves_a_cause(
    library: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(args: argparse.Namespace) -> int:
        raise ModuleNotFoundError(f"No module named '{library}.x'", name=f"{library}.x")

    command(monkeypatch, run)
    monkeypatch.setenv("COGVX_STATUS_FILE", str(tmp_path / "status"))
    monkeypatch.delenv("LOCAL_RANK", raising=False)

    assert main(["doctor"]) == 66

    shown = capsys.readouterr().err
    assert f"'cogvx doctor' needs {library}.x, which is not installed" in shown
    assert "pip install 'cogvx-train[train]'" in shown
    cause = json.loads((tmp_path / "status.0").read_text())
    assert cause["exit_code"] == 66
    assert "cogvx-train[train]" in cause["fix"]


def test_an_interrupt_is_130_and_leaves_a_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(args: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    command(monkeypatch, run)
    monkeypatch.setenv("COGVX_STATUS_FILE", str(tmp_path / "status"))
    monkeypatch.delenv("LOCAL_RANK", raising=False)

    assert main(["doctor"]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert json.loads((tmp_path / "status.0").read_text())["exit_code"] == 130


def test_help_and_unknown_commands_need_no_torch() -> None:
    code = (
        "import sys; from app.cli.main import main\n"
        "main(['--help']); main(['no-such-command']); print('torch' in sys.modules)"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert done.stdout.splitlines()[-1] == "False"
