from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from app.cli import sample
from app.cli.main import main
from app.launch.launcher import Outcome
from tests.support.configs import CONFIGS, ROOT

TINY = ["--base", str(CONFIGS / "tiny/tiny.yaml"), "--load", "weights"]


def test_help_shows_own_options_arguments_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "--help"]) == 0

    shown = capsys.readouterr().out
    assert shown.startswith("usage: cogvx sample")
    assert all(flag in shown for flag in ("--prompt", "--image", "--sampling-fps", "--base"))
    assert "cogvx sample --run s3://" in shown


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ([*TINY, "--promt", "a cat"], 2, "--promt"),
        ([*TINY[:2], "--prompt", "a cat"], 78, "'load' is missing"),
        (["--load", "weights", "--prompt", "a cat"], 2, "--base is missing"),
        ([*TINY, "model.scale_factr=1"], 78, "did you mean 'scale_factor'"),
    ],
)
def test_mistakes_are_found_before_torch_is_imported(
    words: list[str], code: int, says: str
) -> None:
    program = (
        "import sys; from app.cli.main import main\n"
        f"code = main({['sample', *words]!r}); print('torch' in sys.modules); sys.exit(code)"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert done.stdout == "False\n"


def test_several_processes_get_what_was_typed_as_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[list[str], str]] = []

    def start(command: list[str], environ: dict[str, str], options: object) -> Outcome:
        file = next(word for word in command if word.startswith("args.input_file="))
        asked.append((command, Path(file.partition("=")[2]).read_text()))
        return Outcome(0)

    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)  # earlier tests were ranks
    typed = tmp_path / "typed"
    typed.write_text("a cat\na dog\n")
    monkeypatch.setattr("app.cli.train.launch", start)

    with typed.open() as lines:
        monkeypatch.setattr(sys, "stdin", lines)
        code = sample.run_words([*TINY, "--nproc-per-node", "3", "--out", "/there"])

    assert code == 0
    ((command, content),) = asked
    assert command[0] == "sample"
    assert content == "a cat\na dog\n"
    assert {"args.mode=inference", "args.output_dir=/there"} <= set(command)
