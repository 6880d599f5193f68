"""`cogvx train`: who starts the processes, and what is found wrong before torch is imported."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from app.cli import train as command
from app.cli.main import main
from app.errors import ConfigError, DataError
from app.launch.causes import Cause
from app.launch.launcher import LaunchOptions, Outcome
from tests.support.configs import ROOT, TINY, load

SINGLE: dict[str, str] = {}
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "h",
    "MASTER_PORT": "1",
}
OPENMPI = {"OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_RANK": "0"}
PLAIN = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1"}
OPERATOR = {
    "PET_NPROC_PER_NODE": "2",
    "PET_NNODES": "2",
    "PET_NODE_RANK": "0",
    "PET_MASTER_ADDR": "h",
    "PET_MASTER_PORT": "1",
}
ELASTIC = {"PET_RDZV_ENDPOINT": "h:1", "PET_NNODES": "1:2", "PET_NPROC_PER_NODE": "1"}


@pytest.mark.parametrize(
    ("environ", "gpus", "words", "started"),
    [
        (SINGLE, 0, [], None),
        (SINGLE, 1, [], None),
        (SINGLE, 8, [], 8),
        (SINGLE, 8, ["--nproc-per-node", "2"], 2),
        (SINGLE, 8, ["--nproc-per-node", "1"], None),
        (SINGLE, 0, ["--nproc-per-node", "2"], 2),
        (TORCHRUN, 8, [], None),
        (TORCHRUN, 8, ["--nproc-per-node", "2"], None),
        ({**OPENMPI, "OMPI_COMM_WORLD_SIZE": "1"}, 8, [], None),
        (PLAIN, 8, [], None),
    ],
)
def test_nproc_per_node_is_the_number_of_processes_started(
    environ: dict[str, str],
    gpus: int,
    words: list[str],
    started: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(command, "count_gpus", lambda environ: gpus)

    variables = command.started_by_us(load(*TINY, *words), environ)

    expected = {"PET_STANDALONE": "", "PET_NPROC_PER_NODE": str(started)}
    assert variables == (None if started is None else expected)


@pytest.mark.parametrize(
    ("environ", "count"),
    [
        (TORCHRUN, 3),
        (PLAIN, 2),
        ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "h"}, 2),
        (OPERATOR, 4),
        (ELASTIC, 2),
    ],
)
def test_another_number_than_the_environment_says_is_refused(
    environ: dict[str, str], count: int
) -> None:
    with pytest.raises(ConfigError, match=f"--nproc-per-node is {count}, but the environment"):
        command.started_by_us(load(*TINY, "--nproc-per-node", str(count)), environ)


@pytest.mark.parametrize("environ", [OPERATOR, ELASTIC])
def test_a_pod_says_everything_itself(environ: dict[str, str]) -> None:
    assert command.started_by_us(load(*TINY), environ) == {}


def test_contradicting_variables_are_refused() -> None:
    with pytest.raises(ConfigError, match="RANK is 2 of WORLD_SIZE 2"):
        command.started_by_us(load(*TINY), {**PLAIN, "RANK": "2"})


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of a gang, no GPU."""
    for name in {**TORCHRUN, **OPENMPI, **OPERATOR, **ELASTIC}:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(command, "count_gpus", lambda environ: 0)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("code", [0, 65])
def test_all_ranks_are_started_with_the_same_words_and_their_code_is_returned(
    code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[Sequence[str], Mapping[str, str]]] = []

    def launch(words: Sequence[str], environ: Mapping[str, str], options: LaunchOptions) -> Outcome:
        calls.append((words, environ))
        return Outcome(code, Cause(code, "a shard is cut", "here", "so") if code else None)

    monkeypatch.setattr(command, "launch", launch)
    monkeypatch.setenv("MINE", "kept")
    words = [*TINY, "--nproc-per-node", "2"]

    assert main(["train", *words]) == code

    ((started, environ),) = calls
    assert started == ["train", *words]
    assert environ["PET_NPROC_PER_NODE"] == "2"
    assert environ["MINE"] == "kept"
    assert "PET_NPROC_PER_NODE" not in os.environ
    assert capsys.readouterr().err == (
        f"exit code {code}: a shard is cut\n  where: here\n  fix:   so\n" if code else ""
    )


@pytest.mark.usefixtures("alone")
def test_one_process_trains_here(monkeypatch: pytest.MonkeyPatch) -> None:
    import app.run.train

    calls: list[Any] = []

    def train(args: Namespace, show: object) -> int:
        config = args.run_config
        calls.append((config.training.seed, config.start_warnings, show))
        return 0

    monkeypatch.setattr(app.run.train, "train", train)

    assert main(["train", *TINY, "--seed", "5"]) == 0
    assert calls == [(5, (), None)]  # no terminal, no progress line


@pytest.mark.usefixtures("alone")
def test_an_error_of_the_run_is_its_exit_code_and_a_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import app.run.train

    def train(args: Namespace, show: object) -> int:
        raise DataError("a shard is cut", where="s3://clips/a.tar", fix="upload it again")

    monkeypatch.setattr(app.run.train, "train", train)
    monkeypatch.setenv("COGVX_STATUS_FILE", str(tmp_path / "status"))

    assert main(["train", *TINY]) == 65
    assert "error: a shard is cut" in capsys.readouterr().err
    assert json.loads((tmp_path / "status.0").read_text())["exit_code"] == 65


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    "problem", [DataError("a", where="b", fix="c"), RuntimeError("a"), ModuleNotFoundError("a")]
)
def test_the_cause_of_an_error_is_recorded_once(
    problem: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    import app.run.train

    def train(args: Namespace, show: object) -> int:
        raise problem

    recorded: list[BaseException] = []
    for module in [found for name, found in sys.modules.items() if name.startswith("app.")]:
        if hasattr(module, "record_cause"):
            monkeypatch.setattr(module, "record_cause", recorded.append)
    monkeypatch.setattr(app.run.train, "train", train)

    with contextlib.suppress(RuntimeError, ModuleNotFoundError):
        main(["train", *TINY])

    assert recorded == [problem]


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--base", "a.yaml", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--nproc-per-node" in shown
    assert "examples:\n  cogvx train --base" in shown


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ([*TINY, "--no-such-flag"], 2, "--no-such-flag"),
        ([*TINY, "data.params.num_frame=9"], 78, "did you mean 'num_frames'"),
        ([*TINY, "args.save=null"], 78, "'save' is missing"),
        ([*TINY, "--mode", "inference"], 78, "it does not train"),
    ],
)
def test_mistakes_are_found_before_torch_is_imported(
    words: list[str], code: int, says: str
) -> None:
    program = (
        "import sys; from app.cli.main import main\n"
        f"code = main({['train', *words]!r}); print('torch' in sys.modules); sys.exit(code)"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == code
    assert says in done.stderr
    assert done.stdout == "False\n"
