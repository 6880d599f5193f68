"""From a command line to the frozen configuration of a run.

Everything here is text in, values out: no class is imported, no process is started, no path is
opened but the YAML files themselves.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from app.config.arguments.table import ARGUMENTS
from app.config.assembly import assemble
from app.config.command_line import COMMAND_LINE, CommandLine, read_command_line
from app.config.layers import merge_layers
from app.config.problems import Problems
from app.config.reader import names_of
from app.config.schema.run import CompatConfig, RunConfig
from app.config.target import OWN, Registry, RegistryRow
from app.config.values import flag_value, resolve
from app.errors import UsageError


def load_config(
    argv: Sequence[str], targets: Registry, parser: argparse.ArgumentParser | None = None
) -> RunConfig:
    """The configuration of a command line.

    Args:
        argv: words after the command: `--base FILE ...`, flags, `key.path=value`.
        targets: the table of names that configurations may use (`app.registry.TARGETS`).
        parser: a caller's parser with options of its own; ours are added to it.

    Raises:
        UsageError: a wrong flag.
        ConfigErrors: every mistake of the files and overrides, with file, path and fix.
    """
    return config_of(read_command_line(argv, parser), targets)


def config_of(line: CommandLine, targets: Registry) -> RunConfig:
    """The configuration of a command line that has been read; raises as `load_config`."""
    base = line.flags.get("base")
    if not base:
        raise UsageError(
            "--base is missing",
            where=COMMAND_LINE,
            fix="give YAML files: --base configs/cogvideox_2b_lora.yaml configs/sft.yaml",
        )
    registered = _registered(line, targets)
    table = {**targets, **{name: RegistryRow(dict, path, OWN) for name, path in registered.items()}}
    problems = Problems()
    merged = merge_layers(base, line.flags.get("deepspeed_config"), line.overrides, problems)
    if not merged.complete:
        problems.raise_errors()
    resolved = resolve(merged, line, problems)
    return assemble(merged, resolved, registered, table, problems)


def _registered(line: CommandLine, targets: Registry) -> Mapping[str, str]:
    """Rows of `--register NAME=package.module:Class`; a name of ours cannot be taken over."""
    rows: dict[str, str] = {}
    for text in line.flags.get("register", ()):
        flag_value(ARGUMENTS["register"], [text], CompatConfig())
        name, _, implementation = text.partition("=")
        if name in targets:
            raise UsageError(
                f"--register: '{name}' is a name of this product",
                where=COMMAND_LINE,
                fix="choose another name; those of data sets are "
                f"{', '.join(names_of('dataset', targets))}",
            )
        rows[name] = implementation
    return rows
