"""A child ends with its starter, however that one ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from app.distributed.parent import PARENT, follow_parent, followed
from tests.support.configs import ROOT

CHILD = """
import os, sys, time
from app.distributed.parent import PARENT, follow_parent
follow_parent()
print(os.getpid(), PARENT in os.environ, flush=True)
time.sleep(60)
"""
STARTER = f"""
import os, sys
from app.launch.processes import Supervisor, watching_signals
with watching_signals():
    Supervisor(1.0).run([sys.executable, "-c", {CHILD!r}], os.environ)
"""


def ends(pid: int, deadline_s: float = 10.0) -> bool:
    """Whether the process is gone, or only waits to be reaped."""
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def test_sigkill_of_the_supervisor_ends_its_child() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STARTER], stdout=subprocess.PIPE, text=True, env=environment()
    ) as starter:
        assert starter.stdout is not None
        pid, has_name = starter.stdout.readline().split()
        assert not ends(int(pid), 0.2)

        starter.send_signal(signal.SIGKILL)

        assert ends(int(pid))
    assert has_name == "False"  # grandchildren are not told of a parent that is not theirs


def test_a_child_whose_starter_has_ended_already_ends_at_once() -> None:
    of_another = environment(**{PARENT: "1"})

    done = subprocess.run([sys.executable, "-c", CHILD], env=of_another, check=False, timeout=30)

    assert done.returncode == 137


def test_a_process_that_nobody_started_so_follows_nobody() -> None:
    follow_parent()

    assert followed({"A": "b"}) == {"A": "b", PARENT: str(os.getpid())}
