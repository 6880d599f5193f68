"""The command line as it was typed: the flags that were given, with their texts.

Only flags that were given appear in the result, so that a flag equal to its default still
counts as given. Texts become values later, together with those of the YAML files.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from app.config.argument import Argument
from app.config.arguments.table import ARGUMENTS
from app.config.layers import OVERRIDE
from app.config.problems import nearest
from app.errors import UsageError

COMMAND_LINE = "the command line"
GATHERED = ("base",)  # given twice, the lists are joined


@dataclass(frozen=True, slots=True)
class CommandLine:
    """What was typed: texts of the given flags, overrides, values of a caller's own options."""

    flags: dict[str, Any] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    own: dict[str, Any] = field(default_factory=dict)


class _Parser(argparse.ArgumentParser):
    """argparse with our errors instead of usage text and SystemExit."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, where=COMMAND_LINE, fix="see cogvx train --help")


def own_parser(prog: str) -> argparse.ArgumentParser:
    """A parser for a command's own options, to hand to `read_command_line`; raises UsageError."""
    return _Parser(
        prog=prog, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def make_parser(prog: str = "cogvx") -> argparse.ArgumentParser:
    """A parser with every argument of the table; raises UsageError."""
    parser = _Parser(
        prog=prog,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="key.path=value after the flags overrides any key: args.lr=1e-4, "
        "model.scale_factor=0.7, data.params.fps=16, deepspeed.gradient_clipping=0.",
    )
    add_arguments(parser)
    return parser


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every argument of the table, in both spellings, grouped by subject."""
    groups: dict[str, Any] = {}
    for argument in ARGUMENTS.values():
        if argument.group not in groups:
            groups[argument.group] = parser.add_argument_group(argument.group)
        groups[argument.group].add_argument(*_spellings(argument), **_options(argument))


def _spellings(argument: Argument) -> list[str]:
    underscored = f"--{argument.name}"
    return [argument.flag] if argument.flag == underscored else [argument.flag, underscored]


def _options(argument: Argument) -> dict[str, Any]:
    unit = f" [{argument.unit}]" if argument.unit else ""
    shown = argument.default if argument.default is not None else "none"
    options: dict[str, Any] = {
        "dest": argument.name,
        "default": argparse.SUPPRESS,
        "help": f"{argument.help}{unit} (default: {shown})".replace("%", "%%"),
        "metavar": "TRUE|FALSE" if argument.is_switch else argument.name.upper(),
    }
    if argument.name == "register":
        return {**options, "action": "append", "metavar": "NAME=package.module:Class"}
    if argument.name in GATHERED:
        return {**options, "action": "extend", "nargs": "*"}
    if argument.is_list:
        return {**options, "nargs": "+"}
    if argument.is_switch or argument.name == "iterable_dataset":
        return {**options, "nargs": "?", "const": "true"}
    return options


def read_command_line(
    argv: Sequence[str], parser: argparse.ArgumentParser | None = None
) -> CommandLine:
    """Sort what was typed into flags, overrides and the options of a caller's own parser.

    Args:
        argv: the words after the command.
        parser: a caller's parser with options of its own; ours are added to it.

    Raises:
        UsageError: an unknown flag, or one without its value.
    """
    if parser is None:
        parser = make_parser()
    else:
        add_arguments(parser)
    words, overrides = _split(argv)
    parsed, unknown = parser.parse_known_args(words)
    if unknown:
        raise _unknown(unknown, parser)
    found = vars(parsed)
    return CommandLine(
        flags={name: text for name, text in found.items() if name in ARGUMENTS},
        overrides=overrides,
        own={name: value for name, value in found.items() if name not in ARGUMENTS},
    )


def _split(argv: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    words: list[str] = []
    overrides: list[str] = []
    for word in argv:
        value_of_register = bool(words) and words[-1] == "--register"
        if OVERRIDE.match(word) and not value_of_register:
            overrides.append(word)
        else:
            words.append(word)
    return words, tuple(overrides)


def _unknown(words: Sequence[str], parser: argparse.ArgumentParser) -> UsageError:
    flags = [word for word in words if word.startswith("-")]
    first = (flags or list(words))[0]
    name = first.partition("=")[0]
    if not flags:
        return UsageError(
            f"'{first}' is neither a flag nor an override",
            where=COMMAND_LINE,
            fix="write key.path=value beginning with args., model., data. or deepspeed.",
        )
    options = [option for action in parser._actions for option in action.option_strings]
    known = [option for option in options if "_" not in option]
    best = nearest(name.replace("_", "-"), known)
    return UsageError(
        f"unknown flag '{name}'",
        where=COMMAND_LINE,
        fix=f"did you mean '{best}'?" if best else "see cogvx train --help",
    )
