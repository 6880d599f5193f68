"""The life of a pod, from its environment to its exit code."""

from __future__ import annotations

import json
import logging
import os
import signal
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.distributed.environment import resolve_layout
from app.distributed.layout import RankLayout
from app.errors import CogvxError
from app.launch.causes import STATUS_FILE, Cause, cause_of, first_cause, read_causes
from app.launch.commands import PROGRAM, plan_start
from app.launch.exit_codes import (
    FINISHED,
    PREEMPTED,
    UNKNOWN,
    exit_code_of,
    is_permanent,
    meaning,
)
from app.launch.processes import Ending, Supervisor, watching_signals
from app.launch.wait import connect_once, resolve_once, wait_for_master

log = logging.getLogger(__name__)

TERMINATION_LOG = Path("/dev/termination-log")
TERMINATION_LOG_BYTES = 4096  # what the kubelet keeps


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchOptions:
    """Time limits of PID 1, and what it runs."""

    wait_for_master_s: float = 1800.0  # image pull of the slowest node, an autoscaler
    grace_s: float = 300.0  # terminationGracePeriodSeconds of the pod
    termination_log: Path = TERMINATION_LOG
    program: tuple[str, ...] = PROGRAM


@dataclass(frozen=True, slots=True)
class Outcome:
    """The exit code of the pod, and its cause unless it is 0."""

    exit_code: int
    cause: Cause | None = None


def launch(command: Sequence[str], environ: Mapping[str, str], options: LaunchOptions) -> Outcome:
    """Resolve, wait, start `cogvx <command>`, supervise, explain.

    Raises:
        ConfigError: the environment is contradictory; nothing was started.
    """
    try:
        layout = resolve_layout(environ)
    except CogvxError as problem:
        _leave_message(options.termination_log, cause_of(problem))
        raise
    log.info("placement", extra={"rank": layout.as_dict()})
    with watching_signals(), tempfile.TemporaryDirectory(prefix="cogvx-") as folder:
        status_file = Path(folder) / "status"
        variables = {**environ, STATUS_FILE: str(status_file)}
        outcome = _supervise(layout, command, variables, options)
    if outcome.cause is not None:
        _leave_message(options.termination_log, outcome.cause)
    log.info("ended", extra={"exit_code": outcome.exit_code, "means": meaning(outcome.exit_code)})
    return outcome


def _supervise(
    layout: RankLayout,
    command: Sequence[str],
    environ: Mapping[str, str],
    options: LaunchOptions,
) -> Outcome:
    start = plan_start(layout, command, environ, options.grace_s, options.program)
    supervisor = Supervisor(max(1.0, options.grace_s - 10))
    try:
        if start.wait_for is not None:
            probe = connect_once if start.wait_for_port else resolve_once
            waited_s = wait_for_master(
                start.wait_for, options.wait_for_master_s, supervisor.pause, probe
            )
            log.info("the master is up", extra={"waited_s": round(waited_s, 1)})
    except CogvxError as problem:
        return Outcome(problem.exit_code, cause_of(problem))
    ending = supervisor.run(start.argv, start.environ)
    return conclude(ending, read_causes(Path(environ[STATUS_FILE])))


def conclude(ending: Ending, causes: list[Cause]) -> Outcome:
    """The exit code of the pod, from how the child ended and what its processes wrote.

    A written cause takes precedence over the child's own code, since torchrun returns 1 for
    everything. A child that ended with 0 was not stopped by what one of its processes wrote before
    (a retry that worked).
    """
    code = exit_code_of(ending.returncode)
    if code == FINISHED:
        return Outcome(FINISHED)
    cause = first_cause(causes)
    if cause is not None:
        code = exit_code_of(cause.exit_code)
    if ending.stopped_by is not None and not (cause is not None and is_permanent(code)):
        # Whatever broke during the preemption, the pod must come back.
        code = 130 if ending.stopped_by == signal.SIGINT else PREEMPTED
    if cause is None:
        cause = Cause(code, *_unexplained(ending, code))
    return Outcome(code, cause)


def _unexplained(ending: Ending, code: int) -> tuple[str, str, str]:
    if ending.stopped_by is not None:
        return f"stopped by {ending.stopped_by.name}", "this pod", "nothing to do"
    if code == UNKNOWN:
        fix = "read the log above for the traceback"
        return f"the trainer ended with {ending.returncode}", "this pod", fix
    fix = "for 137 raise the pod's memory limit or use fewer data workers; else read the log above"
    return f"the trainer ended with {code}: {meaning(code)}", "this pod", fix


def _leave_message(path: Path, cause: Cause) -> None:
    """Write the cause where `kubectl describe pod` shows it, if there is such a file."""
    if not path.exists() or not os.access(path, os.W_OK):
        return
    text = f"{cause.text()}\n{json.dumps({'exit_code': cause.exit_code})}\n"
    try:
        path.write_bytes(text.encode()[-TERMINATION_LOG_BYTES:])
    except OSError as problem:
        log.warning("no termination message", extra={"path": str(path), "problem": str(problem)})
