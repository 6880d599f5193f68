"""The pods of a rendered job as local processes, always cleaned up."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from app.errors import RetryableError
from app.launch.processes import descendants
from app.rehearsal.substitutions import LocalProcess

log = logging.getLogger(__name__)

POLL_S = 0.1

OnLine = Callable[[str, str], None]  # pod, line

# A pod gets SIGTERM when this process ends, however it ends; PID 1 then ends its tree.
_ASK_WITH_PARENT = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); "
    "os.getppid() == int(sys.argv[1]) or sys.exit(1); os.execv(sys.argv[2], sys.argv[2:])"
)


class LocalPods:
    """The running pods of one job. A context manager, whose exit ends every process.

    Args:
        processes: what to start, from `substitutions.localize`.
        log_folder: gets `<pod>.log`; a pod that is started again appends to it.
        on_line: called for each line of output, from a thread of that pod.
    """

    def __init__(
        self, processes: Sequence[LocalProcess], log_folder: Path, on_line: OnLine | None = None
    ) -> None:
        self._definitions = {process.pod: process for process in processes}
        self._log_folder = log_folder
        self._on_line = on_line
        self._running: dict[str, subprocess.Popen[str]] = {}
        self._readers: dict[str, threading.Thread] = {}

    def __enter__(self) -> LocalPods:
        self._log_folder.mkdir(parents=True, exist_ok=True)
        for pod in self._definitions:
            self.start(pod)
        return self

    def __exit__(self, *_: object) -> None:
        self._kill_all()
        self._join_readers()

    def start(self, pod: str) -> None:
        """Start a pod, or start it again after its end, as the operator does."""
        definition = self._definitions[pod]
        assert pod not in self._running or self._running[pod].poll() is not None
        process = subprocess.Popen(
            [sys.executable, "-c", _ASK_WITH_PARENT, str(os.getpid()), *definition.argv],
            env=dict(definition.environ),
            cwd=definition.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C is for this process, which ends the pods in order
        )
        self._running[pod] = process
        self._readers[pod] = threading.Thread(target=self._read, args=(pod, process), daemon=True)
        self._readers[pod].start()
        log.info("pod started", extra={"pod": pod, "pid": process.pid})

    def kill(self, pod: str) -> None:
        """SIGKILL the process tree of a pod, as when its node is lost, and wait for its end."""
        process = self._running[pod]
        if process.poll() is None:
            _kill_tree(process.pid)
        process.wait()

    def terminate(self, pod: str) -> None:
        """SIGTERM to PID 1 of a pod, as the kubelet does."""
        if self._running[pod].poll() is None:
            self._running[pod].send_signal(signal.SIGTERM)

    def exit_codes(self) -> dict[str, int | None]:
        """Pod -> its exit code, 128 + signal for a killed one; None while it runs."""
        return {pod: _exit_code(process.poll()) for pod, process in self._running.items()}

    def wait(self, timeout_s: float, settle_s: float = 60.0) -> dict[str, int]:
        """Wait until every pod ended; return their exit codes.

        Args:
            timeout_s: for the whole job.
            settle_s: how long the others may continue after one pod failed; then they are killed,
                since without it they only wait.

        Raises:
            RetryableError: the time is up; every pod was killed.
        """
        deadline = time.monotonic() + timeout_s
        failed_at: float | None = None
        while True:
            codes = self.exit_codes()
            if all(code is not None for code in codes.values()):
                self._join_readers()
                return {pod: code for pod, code in codes.items() if code is not None}
            now = time.monotonic()
            if failed_at is None and any(codes.values()):
                failed_at = now
            if failed_at is not None and now - failed_at > settle_s:
                self._kill_all()
            if now > deadline:
                self._kill_all()
                raise RetryableError(
                    f"the job did not end within {timeout_s:.0f} s",
                    where=f"logs in {self._log_folder}",
                    fix="look at the last lines of each pod's log",
                )
            time.sleep(POLL_S)

    def _kill_all(self) -> None:
        for pod in self._running:
            self.kill(pod)

    def _join_readers(self) -> None:
        for reader in self._readers.values():
            reader.join(timeout=10)

    def _read(self, pod: str, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        path = self._log_folder / f"{pod}.log"
        with path.open("a", encoding="utf-8") as file, process.stdout:
            for line in process.stdout:
                file.write(line)
                file.flush()
                if self._on_line is not None:
                    self._on_line(pod, line.rstrip("\n"))


def _exit_code(returncode: int | None) -> int | None:
    return 128 - returncode if returncode is not None and returncode < 0 else returncode


def _kill_tree(root: int) -> None:
    # Stopped first, from the top, so that none starts or adopts a process meanwhile.
    _send([root], signal.SIGSTOP)
    _send(descendants(root), signal.SIGSTOP)
    _send([*descendants(root), root], signal.SIGKILL)


def _send(pids: Sequence[int], what: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, what)
        except ProcessLookupError:
            log.debug("gone before the signal", extra={"pid": pid})
