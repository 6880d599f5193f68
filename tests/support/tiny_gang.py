"""The ranks of a tiny run as child processes that a test watches, kills and starts again."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from app.rehearsal.processes import LocalPods
from app.rehearsal.substitutions import LocalProcess
from tests.support.ports import reserved_port
from tests.support.warm_python import warm_python

WAIT_S = 150.0  # for whatever a run does next, importing torch included
SETTLE_S = 30.0  # for the others, after one of them failed
POLL_S = 0.005

Event = dict[str, Any]


def ranks_by_hand(
    words: Sequence[str], environment: Mapping[str, str], ranks: Sequence[int] = (0, 1)
) -> list[LocalProcess]:
    """One process per entry of `ranks`, with the variables of a gang on one machine.

    Args:
        words: the command line after `cogvx`.
        environment: of each; its TMPDIR is the working directory.
        ranks: the RANK of each; they differ unless a test wants a clash.
    """
    port, count = str(reserved_port()), str(len(ranks))
    processes = []
    for number, rank in enumerate(ranks):
        variables = {
            **environment,
            "RANK": str(rank),
            "WORLD_SIZE": count,
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": count,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        argv = tuple(warm_python("-m", "app", *words))
        folder = Path(environment["TMPDIR"])
        processes.append(LocalProcess(f"process-{number}", argv, variables, folder))
    return processes


class Gang:
    """Processes of one run, from their start on; leaving the context ends them all."""

    def __init__(self, processes: Sequence[LocalProcess], log_folder: Path) -> None:
        self.names = [process.pod for process in processes]
        self._log_folder = log_folder
        self._pods = LocalPods(processes, log_folder, self._on_line)
        self._events: list[Event] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Gang:
        self._pods.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pods.__exit__(kind, problem, trace)

    def wait_for_step(self, step: int) -> None:
        """Return when this start of the run has told that `step` steps are done."""
        self.wait_until(
            f"step {step}",
            lambda: any(
                event.get("event") == "training" and event["steps_done"] >= step
                for event in self.events()
            ),
        )

    def wait_until(self, what: str, is_so: Callable[[], bool]) -> None:
        """Look again and again; it is a failure when a process ends before."""
        deadline = time.monotonic() + WAIT_S
        while not is_so():
            codes = self._pods.exit_codes()
            assert set(codes.values()) == {None}, f"{what}: {codes}\n{self.text()[-4000:]}"
            assert time.monotonic() < deadline, f"{what} did not come\n{self.text()[-4000:]}"
            time.sleep(POLL_S)

    def kill(self) -> None:
        """SIGKILL every process with its tree."""
        for name in self.names:
            self._pods.kill(name)

    def terminate(self, name: str) -> None:
        """SIGTERM to one process alone."""
        self._pods.terminate(name)

    def start_again(self) -> None:
        """Start every process anew, when all have ended."""
        with self._lock:
            self._events.clear()
        for name in self.names:
            self._pods.start(name)

    def codes(self, timeout_s: float = WAIT_S) -> list[int]:
        """Wait for the end of all; their exit codes."""
        codes = self._pods.wait(timeout_s, SETTLE_S)
        return [codes[name] for name in self.names]

    def events(self, name: str = "") -> list[Event]:
        """The log lines of this start."""
        with self._lock:
            return [event for event in self._events if not name or event["process"] == name]

    def text(self, name: str = "") -> str:
        """Everything that a process printed, in all starts; of all processes without a name."""
        files = [self._log_folder / f"{one}.log" for one in self.names if name in ("", one)]
        return "\n".join(file.read_text() for file in files if file.exists())

    def _on_line(self, name: str, line: str) -> None:
        if line.startswith("{"):
            event = {"process": name, **json.loads(line)}
            with self._lock:
                self._events.append(event)
