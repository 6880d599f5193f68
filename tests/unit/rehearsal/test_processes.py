"""Pods as local processes: output, exit codes, SIGKILL of a whole tree, nothing left behind."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from app.errors import RetryableError
from app.rehearsal.processes import LocalPods
from app.rehearsal.substitutions import LocalProcess

TREE = """
import subprocess, sys, time
code = "import time; time.sleep(120)"
child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
print("child", child.pid, flush=True)
time.sleep(120)
"""


def pod(folder: Path, name: str, code: str) -> LocalProcess:
    return LocalProcess(name, (sys.executable, "-c", code), dict(os.environ), folder)


def test_exit_codes_and_output_come_by_pod(tmp_path: Path) -> None:
    lines: list[tuple[str, str]] = []
    definitions = [
        pod(tmp_path, "job-master-0", "print('hello'); raise SystemExit(0)"),
        pod(tmp_path, "job-worker-0", "import sys; print('oh', file=sys.stderr); sys.exit(78)"),
    ]

    with LocalPods(definitions, tmp_path / "logs", lambda *line: lines.append(line)) as pods:
        codes = pods.wait(30)

    assert codes == {"job-master-0": 0, "job-worker-0": 78}
    assert sorted(lines) == [("job-master-0", "hello"), ("job-worker-0", "oh")]
    assert (tmp_path / "logs/job-worker-0.log").read_text() == "oh\n"


def test_a_killed_pod_leaves_no_process_and_can_be_started_again(tmp_path: Path) -> None:
    with LocalPods([pod(tmp_path, "a", TREE)], tmp_path / "logs") as pods:
        child = _child_of(tmp_path / "logs/a.log", 0)
        pods.kill("a")

        assert pods.exit_codes() == {"a": 137}
        assert _is_gone(child)

        pods.start("a")
        second = _child_of(tmp_path / "logs/a.log", 1)
    assert _is_gone(second)


def test_pods_that_wait_for_a_failed_one_are_killed_after_a_while(tmp_path: Path) -> None:
    definitions = [pod(tmp_path, "a", "raise SystemExit(65)"), pod(tmp_path, "b", TREE)]

    with LocalPods(definitions, tmp_path / "logs") as pods:
        codes = pods.wait(60, settle_s=0.5)

    assert codes == {"a": 65, "b": 137}


def test_a_job_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    with (
        LocalPods([pod(tmp_path, "a", TREE)], tmp_path / "logs") as pods,
        pytest.raises(RetryableError, match="did not end"),
    ):
        pods.wait(1.0)

    assert pods.exit_codes() == {"a": 137}


def test_sigterm_goes_to_the_first_process_of_the_pod(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(143)); "
        "print('ready', flush=True); time.sleep(120)"
    )
    with LocalPods([pod(tmp_path, "a", code)], tmp_path / "logs") as pods:
        _line_of(tmp_path / "logs/a.log", 0)
        pods.terminate("a")

        assert pods.wait(30) == {"a": 143}


def _line_of(log: Path, index: int) -> str:
    deadline = time.monotonic() + 30
    while not log.exists() or len(log.read_text().splitlines()) <= index:
        assert time.monotonic() < deadline, f"no line {index} in {log}"
        time.sleep(0.02)
    return log.read_text().splitlines()[index]


def _child_of(log: Path, index: int) -> int:
    return int(_line_of(log, index).split()[1])


def _is_gone(pid: int) -> bool:
    """Gone, or a zombie that waits for this machine's init; a killed process needs a moment."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return True
        if stat.rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.02)
    return False
