"""What the pages tell a user to type is accepted by the program that would read it."""

from __future__ import annotations

import ast
import importlib
import json
from pathlib import Path

import pytest

from tests.docs.commands import PROGRAMS, Command, commands_of, judge
from tests.docs.documents import (
    judge_layer,
    judge_objects,
    judge_operator_template,
    judge_values,
    kind_of,
    values_of,
)
from tests.docs.pages import ROOT, Block, blocks_of, indented_lines, pages

PAGES = pages()
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
CHECKED = [block for block in BLOCKS if block.unchecked is None]
LANGUAGES = ("sh", "yaml", "json", "python", "text")  # text is output: nobody types it
MOST_UNCHECKED = 3
YAML_JUDGES = {
    "layer": judge_layer,
    "values": lambda text: judge_values(values_of(text)),
    "objects": judge_objects,
    "operator template": judge_operator_template,
}


def of_language(language: str) -> list[Block]:
    return [block for block in CHECKED if block.language == language]


def commands() -> list[tuple[str, Command]]:
    """Every command of the pages with its place."""
    found = []
    for page in PAGES:
        blocks = [block for block in of_language("sh") if block.page == page.name]
        values = tuple(
            values_of(block.text)
            for block in of_language("yaml")
            if block.page == page.name and kind_of(block.text) == "values"
        )
        for block in blocks:
            for words in commands_of(block.text):
                found.append((f"{block.place} {' '.join(words)[:40]}", Command(words, values)))
    return found


COMMANDS = commands()


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pages name files from the root of the repository."""
    monkeypatch.chdir(ROOT)


def test_every_block_is_fenced_and_names_its_language() -> None:
    assert [place for page in PAGES for place in indented_lines(page)] == []
    assert [b.place for b in BLOCKS if b.language not in LANGUAGES] == []


def test_a_block_that_nobody_checks_says_why() -> None:
    unchecked = [block for block in BLOCKS if block.unchecked is not None]

    assert [b.place for b in unchecked if len((b.unchecked or "").split()) < 4] == []
    assert len(unchecked) <= MOST_UNCHECKED


def test_output_holds_no_command() -> None:
    hidden = [
        f"{block.place}: {words[0]}"
        for block in of_language("text")
        for line in block.text.splitlines()
        for words in [line.removeprefix("$ ").split()]
        if words and words[0] in PROGRAMS
    ]

    assert hidden == []


@pytest.mark.parametrize("command", [c for _, c in COMMANDS], ids=[name for name, _ in COMMANDS])
def test_a_command_would_be_accepted(command: Command) -> None:
    judge(command)


@pytest.mark.parametrize("block", of_language("yaml"), ids=lambda block: block.place)
def test_yaml_is_accepted_by_its_reader(block: Block) -> None:
    kind = kind_of(block.text)

    assert kind in YAML_JUDGES, "its keys are those of no configuration, values file or object"
    YAML_JUDGES[kind](block.text)


@pytest.mark.parametrize("block", of_language("json"), ids=lambda block: block.place)
def test_json_is_read(block: Block) -> None:
    assert json.loads(block.text)


@pytest.mark.parametrize("block", of_language("python"), ids=lambda block: block.place)
def test_python_compiles_and_finds_what_it_imports(block: Block) -> None:
    compile(block.text, block.place, "exec")
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def test_every_example_layer_is_used_by_a_command() -> None:
    words = {word for _, command in COMMANDS for word in command.words}
    layers = [file.relative_to(ROOT).as_posix() for file in Path(ROOT / "examples").glob("*.yaml")]

    assert layers
    assert set(layers) <= words
