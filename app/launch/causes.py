"""Why the trainer ended, passed from its processes to PID 1 in small files.

`cogvx launch` names a path in COGVX_STATUS_FILE; each process that fails writes
`<path>.<local rank>` once; the launcher reads them all and takes the first *cause*: permanent
ones before retryable ones, since peers of a rank with bad data only see a lost connection.
Format: JSON with exit_code, what, where, fix and the time of writing.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from app.errors import CogvxError, RetryableError
from app.launch.exit_codes import UNKNOWN, exit_code_of, is_permanent

STATUS_FILE = "COGVX_STATUS_FILE"

# Names, not classes: this runs in PID 1 too, and torch takes seconds to import.
_LOST_PEER = ("DistBackendError", "DistNetworkError", "DistStoreError")
_OUT_OF_MEMORY = ("OutOfMemoryError",)
# gloo and CUDA raise plain RuntimeErrors; these messages of theirs mean a lost peer or node.
_LOST_MESSAGES = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "timed out waiting",
    "nccl error",
    "uncorrectable ecc error",
)


@dataclass(frozen=True, slots=True)
class Cause:
    """The reason why a process ended, as it wrote it."""

    exit_code: int
    what: str
    where: str
    fix: str
    written: float = 0.0  # seconds since the epoch

    def text(self) -> str:
        """The three lines that users read."""
        return f"{self.what}\n  where: {self.where}\n  fix:   {self.fix}"


def cause_of(problem: BaseException) -> Cause:
    """Classify an exception by its type, then by its message."""
    if isinstance(problem, CogvxError):
        return Cause(problem.exit_code, problem.what, problem.where, problem.fix)
    if isinstance(problem, SystemExit):
        return _early_end(problem)
    if isinstance(problem, KeyboardInterrupt):
        return Cause(130, "interrupted", "the trainer", "start it again: a run resumes")
    names = {kind.__name__ for kind in type(problem).__mro__}
    message = str(problem).strip() or type(problem).__name__
    first_line = message.splitlines()[0][:500]
    if names & set(_OUT_OF_MEMORY):
        # It would happen again at the same step, so it must not be retried.
        fix = "use a smaller micro batch, activation checkpointing, or LoRA"
        return Cause(UNKNOWN, f"out of GPU memory: {first_line}", "the GPU", fix)
    lost = any(text in message.lower() for text in _LOST_MESSAGES)
    if names & set(_LOST_PEER) or (lost and isinstance(problem, RuntimeError | OSError)):
        fix = "look at the other pods' logs for the first cause; this pod starts again"
        return Cause(RetryableError.exit_code, first_line, "communication with a peer", fix)
    fix = "this is a bug in cogvx: report it with the traceback in the log"
    return Cause(UNKNOWN, f"{type(problem).__name__}: {first_line}", "the trainer", fix)


def _early_end(problem: SystemExit) -> Cause:
    """Code that called sys.exit() in the middle of the work: never a success, whatever it gave."""
    code = problem.code
    number = exit_code_of(code) if isinstance(code, int) and 0 < code < 256 else UNKNOWN
    given = repr(code) if code is None or isinstance(code, int) else f"'{code}'"
    # wandb puts a function of its own in the place of sys.exit.
    frames = [
        frame
        for frame in traceback.extract_tb(problem.__traceback__)
        if "/wandb/" not in frame.filename
    ]
    where = f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else "the trainer"
    fix = "raise an error that says what is wrong, in place of sys.exit()"
    return Cause(number, f"the work was ended by SystemExit({given})", where, fix)


def record_cause(problem: BaseException, environ: Mapping[str, str] = os.environ) -> Cause:
    """Classify, and write the cause for the launcher if COGVX_STATUS_FILE names a path."""
    cause = cause_of(problem)
    path = environ.get(STATUS_FILE)
    if path:
        target = Path(f"{path}.{environ.get('LOCAL_RANK', '0')}")
        draft = target.with_name(target.name + f".{os.getpid()}.draft")
        stamped = asdict(cause) | {"written": time.time()}
        draft.write_text(json.dumps(stamped), encoding="utf-8")
        draft.replace(target)
    return cause


def read_causes(path: Path) -> list[Cause]:
    """Every readable cause under `path` and `path.*`, in order of writing."""
    causes = []
    for file in sorted(path.parent.glob(path.name + "*")):
        if file.name.endswith(".draft"):
            continue
        cause = _parse(file)
        if cause is not None:
            causes.append(cause)
    return sorted(causes, key=lambda cause: cause.written)


def first_cause(causes: list[Cause]) -> Cause | None:
    """The earliest permanent cause, else the earliest of all."""
    permanent = [cause for cause in causes if is_permanent(cause.exit_code)]
    ordered = permanent or causes
    return ordered[0] if ordered else None


def _parse(file: Path) -> Cause | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return Cause(
            exit_code=int(content["exit_code"]),
            what=str(content["what"]),
            where=str(content["where"]),
            fix=str(content["fix"]),
            written=float(content.get("written", 0.0)),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None  # an incomplete file of a process that was killed while writing
