"""PID 1 with a real child: ends, signals, orphans, messages.

The launcher runs as a process of its own, since it blocks signals and reaps every child.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from app.launch.causes import Cause
from app.launch.launcher import conclude
from app.launch.processes import Ending
from tests.support.ports import reserved_port

STUB = Path(__file__).with_name("trainer_stub.py")
DRIVER = """
import json, logging, os, sys
from pathlib import Path
from app.errors import CogvxError
from app.launch.launcher import LaunchOptions, launch
logging.basicConfig(level=logging.INFO, filename=sys.argv[2] + ".log")
options = LaunchOptions(
    wait_for_master_s=float(sys.argv[3]), grace_s=float(sys.argv[4]),
    termination_log=Path(sys.argv[2]), program=(sys.argv[1],),
)
try:
    outcome = launch(sys.argv[5:], dict(os.environ), options)
except CogvxError as problem:
    sys.exit(problem.exit_code)
print(json.dumps({"what": outcome.cause.what if outcome.cause else None}))
sys.exit(outcome.exit_code)
"""


def start(
    folder: Path,
    *command: str,
    environ: Mapping[str, str] | None = None,
    wait_s: float = 30.0,
    grace_s: float = 60.0,
) -> subprocess.Popen[str]:
    message = folder / "termination-log"
    message.touch()
    words = [str(STUB), str(message), str(wait_s), str(grace_s), *command]
    kept = {key: os.environ[key] for key in ("PATH", "HOME", "TMPDIR") if key in os.environ}
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, *words],
        env={**kept, "PYTHONPATH": os.getcwd(), **(environ or {})},
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for_file(path: Path, words: str = "") -> str:
    deadline = time.monotonic() + 30
    while not path.exists() or not path.read_text() or words not in path.read_text():
        assert time.monotonic() < deadline, f"{path} with {words!r} did not come"
        time.sleep(0.02)
    return path.read_text()


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (66, 66), (78, 78), (138, 138), (3, 1)])
def test_the_code_of_the_child_is_the_code_of_the_pod(
    tmp_path: Path, code: int, expected: int
) -> None:
    process = start(tmp_path, "stub", "exit", str(code))
    process.communicate(timeout=30)

    assert process.returncode == expected


@pytest.mark.parametrize(
    ("number", "expected"), [(signal.SIGKILL, 137), (signal.SIGSEGV, 139), (signal.SIGABRT, 138)]
)
def test_a_killed_child_ends_the_pod_retryable(tmp_path: Path, number: int, expected: int) -> None:
    process = start(tmp_path, "stub", "die", str(int(number)))
    process.communicate(timeout=30)

    assert process.returncode == expected


def test_a_written_cause_beats_the_code_and_lands_in_the_termination_message(
    tmp_path: Path,
) -> None:
    process = start(tmp_path, "stub", "status", "65", "1")
    out, _ = process.communicate(timeout=30)

    assert process.returncode == 65
    assert json.loads(out)["what"] == "w"
    assert (tmp_path / "termination-log").read_text().startswith("w\n  where: x\n  fix:   y\n")


def test_a_child_that_ends_well_wins_over_what_was_written_before(tmp_path: Path) -> None:
    process = start(tmp_path, "stub", "status", "138", "0")
    process.communicate(timeout=30)

    assert process.returncode == 0
    assert (tmp_path / "termination-log").read_text() == ""


@pytest.mark.parametrize(("own", "expected"), [(143, 143), (1, 143), (0, 0)])
def test_sigterm_reaches_the_child_and_the_pod_comes_back_unless_it_finished(
    tmp_path: Path, own: int, expected: int
) -> None:
    process = start(tmp_path, "stub", "wait", str(tmp_path / "ready"), str(own))
    wait_for_file(tmp_path / "ready")

    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)

    assert process.returncode == expected


def test_a_child_deaf_to_sigterm_is_killed_before_the_grace_period_ends(tmp_path: Path) -> None:
    process = start(tmp_path, "stub", "deaf", str(tmp_path / "ready"), grace_s=11.0)
    wait_for_file(tmp_path / "ready")

    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)

    assert process.returncode == 143
    assert time.monotonic() - asked < 9.0


def test_what_the_child_leaves_behind_is_killed_and_reaped(tmp_path: Path) -> None:
    process = start(tmp_path, "stub", "orphan", str(tmp_path / "pid"))
    orphan = int(wait_for_file(tmp_path / "pid"))
    process.communicate(timeout=30)

    assert process.returncode == 0
    assert not Path(f"/proc/{orphan}").exists()


PLAIN = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "PET_NNODES": "2",
    "PET_NPROC_PER_NODE": "1",
    "MASTER_ADDR": "localhost",
}


def test_a_plain_pod_gives_the_trainer_its_rank(tmp_path: Path) -> None:
    environ = PLAIN | {"MASTER_PORT": "23456"}

    process = start(tmp_path, "train", "environment", environ=environ)
    out, _ = process.communicate(timeout=30)

    assert json.loads(out.splitlines()[0]) == {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "23456",
    }


def test_a_master_that_never_comes_is_retryable_and_nothing_is_started(tmp_path: Path) -> None:
    environ = PLAIN | {"MASTER_ADDR": "no-such-master.invalid", "MASTER_PORT": "1"}

    process = start(tmp_path, "train", "orphan", str(tmp_path / "pid"), environ=environ, wait_s=0.2)
    process.communicate(timeout=30)

    assert process.returncode == 138
    assert not (tmp_path / "pid").exists()
    assert "the master was not reachable" in (tmp_path / "termination-log").read_text()


def test_sigterm_while_waiting_for_the_master_is_a_preemption(tmp_path: Path) -> None:
    port = reserved_port()
    environ = PLAIN | {"PET_NPROC_PER_NODE": "2", "WORLD_SIZE": "4", "MASTER_PORT": str(port)}

    process = start(tmp_path, "train", "exit", "0", environ=environ)
    wait_for_file(tmp_path / "termination-log.log", "waiting for the master")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)

    assert process.returncode == 143


def test_a_contradiction_starts_nothing_and_is_a_configuration_error(tmp_path: Path) -> None:
    environ = PLAIN | {"RANK": "2", "MASTER_PORT": "1"}

    process = start(tmp_path, "train", "orphan", str(tmp_path / "pid"), environ=environ)
    process.communicate(timeout=30)

    assert process.returncode == 78
    assert not (tmp_path / "pid").exists()
    assert "RANK is 2 of WORLD_SIZE 2" in (tmp_path / "termination-log").read_text()


def test_a_rank_killed_below_torchrun_ends_the_pod_with_137(tmp_path: Path) -> None:
    environ = {"PET_NPROC_PER_NODE": "2", "PET_NNODES": "1"}

    process = start(tmp_path, "train", "rank-dies", "1", environ=environ, grace_s=40.0)
    process.communicate(timeout=90)

    assert process.returncode == 137


def test_two_nodes_of_two_processes_find_each_other(tmp_path: Path) -> None:
    port = reserved_port()
    nodes = []
    for node in ("1", "0"):  # the worker comes first and waits
        (tmp_path / node).mkdir()
        environ = {
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": str(port),
            "PET_NODE_RANK": node,
            "RANK": node,
            "WORLD_SIZE": "4",
            "PET_NNODES": "2",
            "PET_NPROC_PER_NODE": "2",
        }
        nodes.append(start(tmp_path / node, "train", "environment", environ=environ))

    outputs = [node.communicate(timeout=90)[0] for node in nodes]

    assert [node.returncode for node in nodes] == [0, 0]
    ranks = [json.loads(line) for text in outputs for line in text.splitlines() if "RANK" in line]
    assert sorted(rank["RANK"] for rank in ranks) == ["0", "1", "2", "3"]
    assert {rank["WORLD_SIZE"] for rank in ranks} == {"4"}
    assert sorted(rank["LOCAL_RANK"] for rank in ranks) == ["0", "0", "1", "1"]


def test_a_permanent_cause_stands_even_when_we_were_asked_to_stop() -> None:
    ending = Ending(1, signal.SIGTERM)

    assert conclude(ending, [Cause(78, "a", "b", "c")]).exit_code == 78
    assert conclude(ending, [Cause(138, "a", "b", "c")]).exit_code == 143
    assert conclude(Ending(1, signal.SIGINT), []).exit_code == 130
