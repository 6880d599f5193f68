"""The table of arguments as text: the middle of docs/configuration.md, and plain records."""

from __future__ import annotations

from collections.abc import Iterator

from app.config.argument import Argument, Disposition
from app.config.arguments.data import UNUSED
from app.config.arguments.table import ARGUMENTS
from app.config.values import plain, shown
from app.errors import ConfigError

BEGIN = "<!-- arguments: begin (written by `cogvx config arguments --write`) -->"
END = "<!-- arguments: end -->"
EMPTY = '""'
MEANING = {
    Disposition.WORKS: "works",
    Disposition.MAPPED: "sets {note}",
    Disposition.ACCEPTED: "accepted, no effect: {note}",
    Disposition.LATER: "refused unless it is the default: {note}",
}


def as_records() -> list[dict[str, object]]:
    """Every argument as plain values, for schemas and other tools."""
    return [
        {
            "name": argument.name,
            "flag": argument.flag,
            "type": argument.kind.json_type,
            "items": argument.kind.item.json_type if argument.kind.item else None,
            "choices": list(argument.kind.choices),
            "expects": argument.kind.noun,
            "default": plain(argument.default),
            "unit": argument.unit,
            "group": argument.group,
            "help": argument.help,
            "disposition": argument.disposition.value,
            "note": argument.note,
            "ours": argument.ours,
            "flag_only": argument.flag_only,
        }
        for argument in ARGUMENTS.values()
    ]


def table_page() -> str:
    """Markdown tables of all arguments, by group."""
    groups: dict[str, list[Argument]] = {}
    for argument in ARGUMENTS.values():
        groups.setdefault(argument.group, []).append(argument)
    return "\n".join(line for name, rows in groups.items() for line in _group(name, rows))


def with_table(page: str) -> str:
    """The page with the text between its two markers replaced by the table.

    Raises:
        ConfigError: a marker is missing.
    """
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ConfigError(
            "the page has no place for the table",
            where=f"the lines '{BEGIN}' and '{END}'",
            fix="put both lines into the page",
        )
    return f"{head}{BEGIN}\n\n{table_page()}\n{END}{tail}"


def _group(name: str, rows: list[Argument]) -> Iterator[str]:
    yield f"### {name[0].upper()}{name[1:]}"
    yield ""
    yield "| argument | value | default | what it does | what becomes of it |"
    yield "|---|---|---|---|---|"
    for argument in rows:
        unit = f" ({argument.unit})" if argument.unit else ""
        ours = ", ours" if argument.ours else ""
        where = ", flag only" if argument.flag_only else ""
        cells = (
            f"`{argument.name}`",
            f"{argument.kind.noun}{unit}",
            f"`{shown(argument.default) or EMPTY}`",
            argument.help if argument.group != UNUSED else "",
            MEANING[argument.disposition].format(note=argument.note) + ours + where,
        )
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""
