"""The pages that a user reads, cut into their code blocks.

A page is a Markdown file, or the docstring of an example. A block is fenced and names its
language; `<!-- unchecked: reason -->` on the line before the fence keeps the judges away from it.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
MARKDOWN = ("*.md", "docs/**/*.md", "deploy/**/*.md", "examples/**/*.md")
EXAMPLES = "examples/*.py"

_FENCE = re.compile(r"^ *(`{3,}|~{3,}) *(\S*)")
_UNCHECKED = re.compile(r"<!-- unchecked:(.*)-->")
_INDENTED = re.compile(r" {4,}(?!([-*+]|\d+[.)]) )\S")  # a nested item of a list is no block


@dataclass(frozen=True, slots=True)
class Page:
    """A page, by the path of its file from the root."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block.

    Attributes:
        page: path of the file, from the root.
        line: line of the file that the fence stands on.
        language: first word behind the fence; empty if there is none.
        text: what is inside, without the fence's own indent.
        unchecked: why no judge looks at it; None if one does.
    """

    page: str
    line: int
    language: str
    text: str
    unchecked: str | None = None

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Page]:
    """Every page of the repository, by name."""
    files = sorted({file for pattern in MARKDOWN for file in ROOT.glob(pattern)})
    found = [Page(_name(file), file.read_text(encoding="utf-8")) for file in files]
    for file in sorted(ROOT.glob(EXAMPLES)):
        docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")), clean=False)
        found.append(Page(_name(file), docstring or ""))
    return found


def _name(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def blocks_of(page: Page) -> list[Block]:
    """The fenced blocks of a page; a fence that is never closed reaches to the end."""
    found = []
    before = ""
    lines = enumerate(page.text.splitlines(), 1)
    for number, line in lines:
        if fence := _FENCE.match(line):
            marker = _UNCHECKED.search(before)
            inside = list(_until(fence[1], lines))
            found.append(
                Block(
                    page.name,
                    number,
                    fence[2],
                    textwrap.dedent("\n".join(inside)),
                    marker[1].strip() if marker else None,
                )
            )
        before = line if line.strip() else before
    return found


def prose_of(page: Page) -> Iterator[tuple[int, str]]:
    """Line numbers and lines of a page outside its fenced blocks."""
    lines = enumerate(page.text.splitlines(), 1)
    for number, line in lines:
        if fence := _FENCE.match(line):
            list(_until(fence[1], lines))
        else:
            yield number, line


def _until(fence: str, lines: Iterator[tuple[int, str]]) -> Iterator[str]:
    for _, line in lines:
        closing = line.strip()
        if closing.startswith(fence) and not closing.strip(fence[0]):
            return
        yield line


def indented_lines(page: Page) -> list[str]:
    """Places where Markdown sees a code block without a fence: four blanks after an empty line."""
    found = []
    before = ""
    lines = enumerate(page.text.splitlines(), 1)
    for number, line in lines:
        if fence := _FENCE.match(line):
            list(_until(fence[1], lines))
        elif _INDENTED.match(line) and not before.strip():
            found.append(f"{page.name}:{number}")
        before = line
    return found
