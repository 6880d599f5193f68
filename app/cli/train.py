"""`cogvx train`: one rank of a run, or all ranks of this machine.

Started by torchrun, by `cogvx launch` or on its own, it trains in this process; on a machine with
several GPUs (or with `--nproc-per-node`) it starts one process per GPU and waits for them.
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence

from app.cli import output
from app.config.command_line import COMMAND_LINE, make_parser, read_command_line
from app.config.load import config_of
from app.config.runnable import trainable_run
from app.config.schema.run import RunConfig
from app.distributed.devices import count_gpus
from app.distributed.environment import resolve_layout
from app.errors import ConfigError
from app.launch.launcher import LaunchOptions, launch
from app.registry import TARGETS

EXAMPLES = """examples:
  cogvx train --base configs/cogvideox_2b_lora.yaml configs/sft.yaml \\
    --load cogvideox-2b-sat/transformer --save s3://runs --run-id disney
  cogvx train --base configs/cogvideox_5b_lora.yaml configs/sft.yaml \\
    --load s3://weights/5b/transformer --nproc-per-node 2 args.train_iters=100
"""


def full_parser() -> ArgumentParser:
    """Every option, for the help."""
    return make_parser("cogvx train")


def run_words(words: Sequence[str]) -> int:
    """Run the command; return the exit code."""
    line = read_command_line(words)
    config = trainable_run(config_of(line, TARGETS))
    processes = started_by_us(config, os.environ)
    if processes is not None:
        return all_ranks("train", words, processes)
    # Imported here: whatever was wrong so far needed no torch.
    from app.run.arguments import namespace_of
    from app.run.train import train

    show = output.redraw if sys.stderr.isatty() else None
    return train(namespace_of(config, line.own), show)


def started_by_us(config: RunConfig, environ: Mapping[str, str]) -> dict[str, str] | None:
    """Variables for the processes to start; None when this process is a rank itself.

    Raises:
        ConfigError: `--nproc-per-node` asks for another number than the environment says.
    """
    layout = resolve_layout(environ)
    given = config.arguments["nproc_per_node"]
    if layout.mode != "single" and given not in (None, layout.nproc_per_node):
        raise ConfigError(
            f"--nproc-per-node is {given}, but the environment says {layout.nproc_per_node}",
            where=f"{COMMAND_LINE}, and environment: {layout.sources['nproc_per_node']}",
            fix="remove the flag and set spec.nprocPerNode of the job, or unset RANK and "
            "WORLD_SIZE to start all processes from here",
        )
    if layout.mode in ("inside", "plain"):
        return None
    if layout.mode != "single":
        return {}  # a pod whose entry point is this command: its variables are enough
    count = int(str(given)) if given is not None else count_gpus(environ)
    if count <= 1:
        return None
    return {"PET_STANDALONE": "", "PET_NPROC_PER_NODE": str(count)}


def all_ranks(command: str, words: Sequence[str], variables: Mapping[str, str]) -> int:
    """Start one process per rank of this machine, wait for all, and return the exit code."""
    outcome = launch([command, *words], {**os.environ, **variables}, LaunchOptions())
    if outcome.cause is not None:
        output.note(f"exit code {outcome.exit_code}: {outcome.cause.text()}")
    return outcome.exit_code
