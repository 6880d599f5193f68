"""Everything that the command line prints."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from app.errors import CogvxError


def line(text: str = "") -> None:
    """Print one line of plain text to standard output."""
    print(text, flush=True)


def note(text: str) -> None:
    """Print one line to standard error, so that standard output stays parseable."""
    print(text, file=sys.stderr, flush=True)


def silence() -> None:
    """Discard the rest of standard output: its reader is gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def redraw(text: str) -> None:
    """Replace the last line of the terminal (standard error) with `text`."""
    print(f"\r\x1b[2K{text}", end="", file=sys.stderr, flush=True)


def as_json(value: object) -> None:
    """Print a value as JSON to standard output."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str), flush=True)


def error(problem: CogvxError) -> None:
    """Print what is wrong, where, and how to fix it, to standard error."""
    print(f"error: {problem}", file=sys.stderr, flush=True)


def table(title: str, headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table to standard output; no colours unless it is a terminal."""
    grid = Table(title=title, title_justify="left")
    for header in headers:
        grid.add_column(header, overflow="fold")
    for row in rows:
        grid.add_row(*[str(cell) for cell in row])
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(grid, markup=False)


def facts(title: str, pairs: Mapping[str, object]) -> None:
    """Print names and values, one pair per line."""
    line(title)
    width = max((len(name) for name in pairs), default=0)
    for name, value in pairs.items():
        line(f"  {name:<{width}}  {value}")


@contextmanager
def progress(description: str, total: int) -> Iterator[Progress]:
    """A progress bar on a terminal; elsewhere it draws nothing."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        bar.add_task(description, total=total)
        yield bar
