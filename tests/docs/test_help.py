"""The examples of every `--help` are accepted by the program, like the commands of the pages."""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from io import StringIO

import pytest

from app.cli.main import COMMANDS, command_parser, main
from tests.docs.commands import Command, commands_of, judge
from tests.docs.pages import ROOT

_EXAMPLE = re.compile(r"^  (?:cogvx|echo) (?:.*\\\n)*.*", re.MULTILINE)
WITH_EXAMPLES = ("", "convert", "data", "encode", "sample", "train", "weights")
WITH_EXAMPLES_OF_ACTIONS = ("data check", "data index", "data pack", "data quarantine")


def helps() -> Iterator[str]:
    """The words before every `--help`: of the program, of a command, of an action of one."""
    yield ""
    for name, (module_name, _) in COMMANDS.items():
        yield name
        module = importlib.import_module(module_name)
        if not hasattr(module, "run_words"):
            for action in command_parser(name, module)._actions:
                if isinstance(action, argparse._SubParsersAction):
                    yield from (f"{name} {choice}" for choice in action.choices)


def help_of(words: str) -> str:
    shown = StringIO()
    with redirect_stdout(shown), suppress(SystemExit):
        main([*words.split(), "--help"])
    return shown.getvalue()


def examples() -> dict[str, list[tuple[str, ...]]]:
    """The commands of every help that shows some."""
    found = {}
    for words in helps():
        _, heading, below = help_of(words).partition("\nexamples:\n")
        if heading:
            texts = [match[0].strip() for match in _EXAMPLE.finditer(below)]
            found[words] = [command for text in texts for command in commands_of(text)]
    return found


EXAMPLES = examples()
COMMAND_LINES = {
    f"{words}: {' '.join(line)}": line for words in EXAMPLES for line in EXAMPLES[words]
}


def test_the_commands_that_need_examples_have_them() -> None:
    assert {*WITH_EXAMPLES, *WITH_EXAMPLES_OF_ACTIONS} <= set(EXAMPLES)
    assert all(EXAMPLES.values())


@pytest.mark.parametrize("name", COMMAND_LINES)
def test_an_example_is_accepted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)

    judge(Command(COMMAND_LINES[name]))
