"""`cogvx launch COMMAND ...`: the entry point of the image.

`cogvx launch train --base a.yaml` and `cogvx launch -- train --base a.yaml` are the same. Its own
flags come before the command; everything after it belongs to the command.
"""

from __future__ import annotations

import argparse
import logging
import os

from app.cli import output
from app.cli.numbers import number
from app.errors import UsageError
from app.launch.launcher import LaunchOptions, launch
from app.telemetry.logging import JsonFormatter, LogContext, SecretsFilter

GRACE_VARIABLE = "COGVX_GRACE_PERIOD_S"
LONGEST_S = 366 * 24 * 3600


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of PID 1, and the rest of the line."""
    parser.add_argument(
        "--wait-for-master-s",
        type=number(0, LONGEST_S),
        default=1800.0,
        metavar="S",
        help="seconds to wait for the pod of node rank 0 (default: %(default)g); then the exit "
        "code is 138",
    )
    parser.add_argument(
        "--grace-period-s",
        type=number(0, LONGEST_S),
        default=None,
        metavar="S",
        help=f"seconds between SIGTERM and SIGKILL (default: {GRACE_VARIABLE}, else 300)",
    )
    parser.add_argument(
        "command",
        nargs=argparse.REMAINDER,
        metavar="COMMAND ...",
        help="cogvx command with its arguments, e.g. train --base a.yaml",
    )


def run(args: argparse.Namespace) -> int:
    """Run one pod; return its exit code (docs/exit_codes.md)."""
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise UsageError(
            "nothing to launch",
            where="cogvx launch",
            fix="name a command: cogvx launch train --base model.yaml sft.yaml",
        )
    _log_to_stderr()
    options = LaunchOptions(
        wait_for_master_s=args.wait_for_master_s, grace_s=_grace_s(args.grace_period_s)
    )
    outcome = launch(command, os.environ, options)
    if outcome.cause is not None:
        output.note(f"exit code {outcome.exit_code}: {outcome.cause.text()}")
    return outcome.exit_code


def _grace_s(flag: float | None) -> float:
    if flag is not None:
        return flag
    word = os.environ.get(GRACE_VARIABLE, "").strip() or "300"
    try:
        return number(0, LONGEST_S)(word)
    except argparse.ArgumentTypeError as problem:
        raise UsageError(
            f"the grace period cannot be used: {problem}",
            where=f"environment: {GRACE_VARIABLE}",
            fix="write a number, e.g. 300",
        ) from None


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter(LogContext(rank=None), SecretsFilter(os.environ)))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
