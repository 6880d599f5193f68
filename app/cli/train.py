"""`cogvx train`: one rank of a run, or all ranks of this machine.

Started by torchrun, by `cogvx launch` or alone it trains in this process; on a machine with
several GPUs (or with `--nproc-per-node`) it starts one process for each and waits for them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from app.cli import output
from app.config.command_line import make_parser, read_command_line
from app.config.load import config_of
from app.config.runnable import trainable_run
from app.config.schema.run import RunConfig
from app.launch.causes import record_cause
from app.launch.devices import count_gpus
from app.launch.environment import resolve_placement
from app.launch.launcher import LaunchOptions, launch
from app.registry import TARGETS

EXAMPLES = """examples:
  cogvx train --base configs/cogvideox_2b_lora.yaml configs/sft.yaml --save s3://runs --run-id a
  cogvx train --base model.yaml sft.yaml --nproc-per-node 2 args.train_iters=100
"""


def run_words(words: Sequence[str]) -> int:
    """Run the command; return the exit code."""
    if any(word in ("-h", "--help") for word in words):
        output.line(make_parser("cogvx train").format_help())
        output.line(EXAMPLES)
        return 0
    try:
        config = config_of(read_command_line(words), TARGETS)
        trainable_run(config)
        processes = started_by_us(config, os.environ)
        if processes is not None:
            return all_ranks("train", words, processes)
        # Imported only now: whatever was wrong so far needed no torch.
        from app.run.train import train

        return train(words, show=_progress_line if sys.stderr.isatty() else None)
    except BaseException as problem:
        record_cause(problem)
        raise


def started_by_us(config: RunConfig, environ: Mapping[str, str]) -> dict[str, str] | None:
    """Variables for the processes that we must start; None when this process is a rank itself."""
    placement = resolve_placement(environ)
    if placement.mode in ("inside", "plain"):
        return None
    if placement.mode != "single":
        return {}  # a pod whose entry point is this command: its variables say it all
    asked = config.arguments["nproc_per_node"]
    count = int(str(asked)) if asked is not None else count_gpus(environ)
    if count <= 1:
        return None
    return {"PET_STANDALONE": "", "PET_NPROC_PER_NODE": str(count)}


def all_ranks(command: str, words: Sequence[str], variables: Mapping[str, str]) -> int:
    """Start one process per rank of this machine, wait, and return the exit code of the whole."""
    outcome = launch([command, *words], {**os.environ, **variables}, LaunchOptions())
    if outcome.cause is not None:
        output.note(f"exit code {outcome.exit_code}: {outcome.cause.text()}")
    return outcome.exit_code


def _progress_line(text: str) -> None:
    """Redraw one line of the terminal."""
    output.redraw(text)
