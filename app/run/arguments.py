"""Upstream's entry points: `get_args` and `process_config_to_args`.

The frozen `RunConfig` is the source of truth; the Namespace is rendered from it and carries it as
`args.run_config`. Parsing has no side effects. `get_args` is parse, then start the process group,
then seed, as upstream's is; torch is imported only for the last two.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import copy
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from app.config.arguments.table import ARGUMENTS
from app.config.command_line import CommandLine, read_command_line
from app.config.load import config_of
from app.config.schema.encoders import VAEConfig
from app.config.schema.run import RunConfig
from app.config.values import plain
from app.distributed.rank import RankInfo, check_clip_groups, check_copies
from app.errors import ConfigError, ConfigErrors
from app.registry import TARGETS

log = logging.getLogger(__name__)

# The group that get_args joined is left at the end of the process, not at the end of the call.
_lifetime = contextlib.ExitStack()


def get_args(
    args_list: Sequence[str] | None = None, parser: argparse.ArgumentParser | None = None
) -> argparse.Namespace:
    """Parse, join the process group, and seed the global generators.

    Args:
        args_list: words of the command line; default: those of this process.
        parser: a parser with options of the caller's own; their values are in the result too.

    Returns:
        Every argument of the table, the sections as `model_config`, `data_config` and
        `deepspeed_config`, `rank`, `world_size`, `local_rank`, `device`, `cuda`, `master_ip`,
        `master_port`, the same as `rank_info`, and the typed configuration as `run_config`.

    Raises:
        UsageError: a wrong flag.
        ConfigError: a configuration or an environment that cannot be run.
    """
    args = parse_args(args_list, parser)
    start_distributed(args)
    seed_from(args)
    return args


def parse_args(
    args_list: Sequence[str] | None = None, parser: argparse.ArgumentParser | None = None
) -> argparse.Namespace:
    """`get_args` without its side effects, and without torch; the device is left as requested."""
    line = read_command_line(sys.argv[1:] if args_list is None else args_list, parser)
    return namespace_of(config_of(line, TARGETS), line.own)


def namespace_of(config: RunConfig, own: Mapping[str, Any]) -> argparse.Namespace:
    """The Namespace of this rank; `own` are the values of a caller's own options."""
    rank = RankInfo.from_environment(os.environ)
    if rank.rank == 0:
        for warning in config.warnings:
            log.warning(warning)
    args = argparse.Namespace(**copy.deepcopy(dict(own)))
    render(args, config)
    _set_rank(args, config, rank)
    return args


def process_config_to_args(args: argparse.Namespace) -> argparse.Namespace:
    """Fill a Namespace from the YAML files that its `base` names, in place.

    Values that differ from their built-in default count as given on the command line, so under
    `precedence: flags` they win over the files and under `precedence: yaml` the files win.
    """
    flags: dict[str, Any] = {}
    for name, argument in ARGUMENTS.items():
        value = getattr(args, name, None)
        if value is not None and value != plain(argument.default):
            is_list = isinstance(value, list | tuple)
            flags[name] = [str(item) for item in value] if is_list else str(value)
    render(args, config_of(CommandLine(flags=flags), TARGETS))
    return args


def render(args: argparse.Namespace, config: RunConfig) -> None:
    """Set the attributes that upstream's Namespace has, and `run_config`."""
    for name, value in config.arguments.items():
        setattr(args, name, copy.deepcopy(value))
    trains = config.training is not None
    args.deepspeed = trains
    if trains:
        args.deepspeed_activation_checkpointing = bool(config.arguments["checkpoint_activations"])
    deepspeed = config.sections.get("deepspeed")
    args.deepspeed_config = copy.deepcopy(deepspeed) if isinstance(deepspeed, Mapping) else None
    # Upstream leaves these unset when their section is missing.
    for name in ("model", "data"):
        if name in config.sections:
            setattr(args, f"{name}_config", as_section(config.sections[name]))
    args.run_config = config


def start_distributed(args: argparse.Namespace) -> None:
    """Join the process group named by the environment, or find the one this process is in.

    Ranks that share a network (`model_parallel_size`) or encode clips together (`cp_size`) form
    groups of their own.
    """
    import torch
    import torch.distributed as dist

    from app.distributed.groups import found_groups, process_groups
    from app.distributed.sharing import share_clips, split_ranks

    args.cuda = torch.cuda.is_available()
    args.device = f"cuda:{args.local_rank}" if args.cuda else "cpu"
    device = torch.device(args.device)
    if dist.is_initialized():
        groups = found_groups(args.rank_info, device)
    else:
        groups = _lifetime.enter_context(
            process_groups(args.rank_info, device=device, backend=args.distributed_backend)
        )
    groups = split_ranks(groups, _sharers(args.run_config))
    args.groups = share_clips(groups, _clip_sharers(args.run_config))


def leave_distributed() -> None:
    """Leave the process group that `get_args` joined; at the latest the end of the process does."""
    _lifetime.close()


def seed_from(args: argparse.Namespace) -> None:
    """Seed the global generators; `args.seed` stays the base seed but under `draws: sat`."""
    from app.distributed.seeding import seed_everything

    config: RunConfig = args.run_config
    if config.compat.draws == "sat":
        # Upstream: seed + data-parallel rank. Ranks that share a network draw the same numbers.
        args.seed += args.rank // _sharers(config)
    seed_everything(args.seed)


def _set_rank(args: argparse.Namespace, config: RunConfig, rank: RankInfo) -> None:
    _check_device(config, rank)
    check_copies(rank.world_size, _sharers(config))
    check_clip_groups(rank.world_size, _clip_sharers(config))
    args.rank_info = rank  # read once: another reading may find another free port
    args.rank = rank.rank
    args.world_size = rank.world_size
    args.local_rank = rank.local_rank
    args.master_ip = rank.master_addr
    args.master_port = str(rank.master_port)
    args.cuda = None  # known once torch is imported


def _sharers(config: RunConfig) -> int:
    """How many processes share one copy of the network; sampling gives each its own."""
    return config.training.model_parallel_size if config.training is not None else 1


def _clip_sharers(config: RunConfig) -> int:
    """How many processes encode their clips together, in training."""
    if config.training is None or config.model is None:
        return 1
    first_stage = config.model.first_stage.params
    return first_stage.cp_size if isinstance(first_stage, VAEConfig) else 1


def _check_device(config: RunConfig, rank: RankInfo) -> None:
    """`device` and `local_rank` may repeat what the environment says, not contradict it."""
    errors = []
    for name in ("local_rank", "device"):
        value = config.arguments[name]
        is_given = isinstance(value, int) and value >= 0
        if is_given and value != rank.local_rank and config.training is not None:
            errors.append(
                ConfigError(
                    f"{name} is {value}, but this process has local rank {rank.local_rank}",
                    where=f"args.{name} ({config.origins.get(f'args.{name}', 'default')}) "
                    "and the environment variable LOCAL_RANK",
                    fix=f"leave --{name.replace('_', '-')} out",
                )
            )
    if errors:
        raise ConfigErrors(errors)


atexit.register(leave_distributed)


class Section(dict[str, Any]):
    """A plain dict whose keys can also be read and set as attributes.

    Upstream's `args.model_config` is an OmegaConf node, so its users write
    `args.model_config.network_config.params`. This allows it, and stays a dict for JSON, YAML
    and comparison.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError:
            raise AttributeError(name) from None


def as_section(value: object) -> Any:
    """Nested dicts as nested Sections; lists and values are copied as they are."""
    if isinstance(value, Mapping):
        return Section({str(key): as_section(entry) for key, entry in value.items()})
    if isinstance(value, list | tuple):
        return [as_section(entry) for entry in value]
    return value
