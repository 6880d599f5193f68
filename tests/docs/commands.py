"""Command lines of the pages, judged without running what they ask for.

Commands of cogvx go through their own parser and, where they read a configuration, through every
check that comes before the first import of torch. `cogvx config` and `--help` are run.
"""

from __future__ import annotations

import argparse
import importlib
import io
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

from app.cli.encode import make_encode_parser
from app.cli.main import COMMANDS, command_parser, main
from app.cli.sample import INFERENCE, make_sample_parser
from app.config.command_line import CommandLine, read_command_line
from app.config.load import config_of
from app.config.runnable import encodable_run, samplable_run, trainable_run
from app.errors import CogvxError
from app.registry import TARGETS
from app.rehearsal.chart import Release, render
from app.run.sample.request import OwnOptions, prompts_of, request_of
from tests.docs.documents import Refused
from tests.docs.pages import ROOT
from tests.support.helm_values import overlaid, values_from

SHELL_ONLY = {"echo", "source"}  # needs no judge
_SEPARATORS = {"&&", "||", "|", ";"}
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_TARGET = re.compile(r"^([a-z][a-z-]*):(?!=)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Command:
    """One program with its words, and the values files that its page shows."""

    words: tuple[str, ...]
    values: tuple[dict[str, Any], ...] = ()


def commands_of(text: str) -> Iterator[tuple[str, ...]]:
    """The words of every command of a shell block, without assignments and redirections."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word not in _SEPARATORS:
                words.append(word)
                continue
            if words:
                yield tuple(_plain(words))
            words = []


def _plain(words: Sequence[str]) -> Iterator[str]:
    rest = iter(words)
    has_begun = False
    for word in rest:
        if set(word) <= set("<>&"):
            next(rest, None)  # the file of a redirection
        elif has_begun or not _ASSIGNMENT.match(word):
            has_begun = True
            yield word


def judge(command: Command) -> None:
    """Raise Refused unless the program would accept the command line."""
    program, *words = command.words
    if program in SHELL_ONLY:
        return
    if program not in PROGRAMS:
        raise Refused(f"nothing here knows the program '{program}'")
    with _refusals():
        PROGRAMS[program](words, command)


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn every way to say no into Refused, with what was printed."""
    printed = io.StringIO()
    try:
        with redirect_stdout(printed), redirect_stderr(printed):
            yield
    except CogvxError as problem:
        raise Refused(str(problem)) from None
    except SystemExit as end:
        if end.code:
            raise Refused(f"{end}\n{printed.getvalue()}") from None


def _cogvx(words: Sequence[str], command: Command) -> None:
    if not words:
        raise Refused("cogvx without a command")
    name, rest = words[0], list(words[1:])
    is_cheap = name == "config" and rest[:1] in (["check"], ["show"])
    if is_cheap or {"-h", "--help", "--version"} & set(words):
        code = main(words)
        if code:
            raise SystemExit(f"exit code {code}")
        return
    if name not in COMMANDS:
        raise Refused(f"no command '{name}'")
    module = importlib.import_module(COMMANDS[name][0])
    if hasattr(module, "run_words"):
        _STARTS[name](rest)
        return
    parsed = command_parser(name, module).parse_args(rest)
    if name == "launch":
        inner = parsed.command[1:] if parsed.command[:1] == ["--"] else parsed.command
        _cogvx(inner, command)


def _start_train(words: Sequence[str]) -> None:
    trainable_run(config_of(read_command_line(words), TARGETS))


def _start_encode(words: Sequence[str]) -> None:
    encodable_run(config_of(read_command_line(words, make_encode_parser()), TARGETS))


def _start_sample(words: Sequence[str]) -> None:
    line = read_command_line([*words, INFERENCE], make_sample_parser())
    if "base" not in line.flags:
        if line.own["run"] is None:
            raise Refused("neither --base nor --run")
        return  # the run's own model file, which is not here
    config = samplable_run(config_of(line, TARGETS), has_run=line.own["run"] is not None)
    own = _own_options(line)
    request = request_of(config, own)
    if own.prompt or own.image:
        prompts_of(config, own, (), with_images=request.with_images)


def _own_options(line: CommandLine) -> OwnOptions:
    own = {name: line.own[name] for name in ("image", "size", "num_frames", "run", "step")}
    return OwnOptions(prompt=tuple(line.own["prompt"] or ()), weights=line.own["weights"], **own)


def _module(words: Sequence[str], command: Command) -> None:
    """`python -m app`."""
    if list(words[:2]) != ["-m", "app"]:
        raise Refused("only `python -m app` is known here")
    _cogvx(words[2:], command)


def _torchrun(words: Sequence[str], command: Command) -> None:
    from torch.distributed.run import get_args_parser

    parsed = get_args_parser().parse_args(list(words))
    if not parsed.module or parsed.training_script != "app":
        raise Refused("only `torchrun ... -m app` is known here")
    _cogvx(parsed.training_script_args, command)


def _make(words: Sequence[str], command: Command) -> None:
    """Targets are rules of the Makefile, and variables are used in it."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(_TARGET.findall(makefile))
    for word in words:
        name, is_variable, _ = word.partition("=")
        if not (f"$({name})" in makefile if is_variable else name in targets):
            raise Refused(f"make: the Makefile has no '{name}'")


def _pytest(words: Sequence[str], command: Command) -> None:
    """Options that pytest has, paths that exist, and a `-k` that names something below them."""
    parser = argparse.ArgumentParser("pytest", allow_abbrev=False)
    for name in ("-k", "-m", "-n", "--dist", "-o"):
        parser.add_argument(name)
    for name in ("-x", "--pdb"):
        parser.add_argument(name, action="store_true")
    parser.add_argument("paths", nargs="+")
    parsed = parser.parse_args(list(words))
    paths = [ROOT / path for path in parsed.paths]
    if missing := [str(path) for path in paths if not path.exists()]:
        raise Refused(f"pytest: there is no {', '.join(missing)}")
    texts = [path for path in paths if path.is_file()]
    if parsed.k and texts and not any(parsed.k in path.read_text() for path in texts):
        raise Refused(f"pytest: no test of {parsed.paths} is called '{parsed.k}'")


def _helm(words: Sequence[str], command: Command) -> None:
    """The chart is there, and it renders with the values of the command."""
    parsed = _helm_parser().parse_args(list(words))
    chart = ROOT / parsed.chart
    if not (chart / "Chart.yaml").is_file():
        raise Refused(f"no chart in '{parsed.chart}'")
    files = [ROOT / name for name in parsed.values]
    stored: dict[str, Any] = {}
    for file in files:
        if file.is_file():
            stored = overlaid(stored, values_from(file.read_text(encoding="utf-8")))
    shown = command.values if any(not file.is_file() for file in files) else ({},)
    if not shown:
        raise Refused(f"neither the repository nor the page has {', '.join(parsed.values)}")
    for values in shown:
        render(chart, overlaid(stored, values), Release(parsed.release, parsed.namespace))


def _helm_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("helm", allow_abbrev=False)
    parser.add_argument("action", choices=("install", "upgrade", "template"))
    parser.add_argument("release")
    parser.add_argument("chart")
    parser.add_argument("-f", "--values", action="append", default=[])
    parser.add_argument("-n", "--namespace", default="default")
    parser.add_argument("--create-namespace", action="store_true")
    parser.add_argument("--install", action="store_true")
    return parser


PROGRAMS: dict[str, Callable[[Sequence[str], Command], None]] = {
    "cogvx": _cogvx,
    "python": _module,
    "torchrun": _torchrun,
    "make": _make,
    "helm": _helm,
    "pytest": _pytest,
}
_STARTS: dict[str, Callable[[Sequence[str]], None]] = {
    "train": _start_train,
    "encode": _start_encode,
    "sample": _start_sample,
}
