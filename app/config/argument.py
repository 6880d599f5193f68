"""What one argument is: the row type of the arguments table (app.config.arguments.table).

An argument that fills a field of a schema class is declared at that field, by `argument`: its
kind, default and help are there and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from enum import Enum
from typing import Any, TypedDict, Unpack

from app.config.kinds import Kind

# Groups of the help text and of docs/configuration.md
RUN = "run"
OPTIMIZER = "optimizer and precision"
CHECKPOINTS = "weights and checkpoints"
LOGGING = "logging"
VALIDATION = "validation"
PROCESSES = "processes and devices"
DATA = "data"
COMPATIBILITY = "compatibility with upstream"


class Disposition(Enum):
    """What becomes of an argument."""

    WORKS = "works"  # changes something, and a test shows it
    MAPPED = "mapped"  # sets a key elsewhere; `note` names it
    ACCEPTED = "accepted"  # changes nothing; one warning with the reason in `note`
    LATER = "later"  # not supported yet: any value but the default is refused


@dataclass(frozen=True, kw_only=True, slots=True)
class Argument:
    """One argument: `--name`, `args.name` in YAML, an attribute of upstream's Namespace."""

    name: str = ""  # empty: that of the field where it is declared
    kind: Kind
    default: Any
    help: str
    group: str
    unit: str = ""
    disposition: Disposition = Disposition.WORKS
    note: str = ""
    ours: bool = False  # upstream has no such argument
    flag_only: bool = False  # never in YAML

    @property
    def flag(self) -> str:
        """The spelling on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def is_switch(self) -> bool:
        """Whether the bare flag means true."""
        return self.kind.json_type == "boolean"

    @property
    def is_list(self) -> bool:
        """Whether the flag takes several values."""
        return self.kind.item is not None


class Details(TypedDict, total=False):
    """Keys of `Argument` that `argument` passes on."""

    group: str
    name: str
    unit: str
    disposition: Disposition
    note: str
    ours: bool


def argument(kind: Kind, default: object, does: str, **details: Unpack[Details]) -> Any:
    """A field of a schema class that an argument fills; `does` is its help."""
    return declared(Argument(kind=kind, default=default, help=does, **details), default)


def declared(row: Argument, default: object) -> Any:
    """As `argument`, for a field whose default is not that of its argument."""
    return field(default=default, metadata={"argument": row})


def arguments_of(*schemas: type) -> Iterator[tuple[str, Argument]]:
    """(field, argument) of every field that is declared by `argument`."""
    for schema in schemas:
        for one in fields(schema):
            if "argument" in one.metadata:
                row: Argument = one.metadata["argument"]
                yield one.name, replace(row, name=row.name or one.name)


def filled(schema: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a schema class with the final values of their arguments."""
    return {name: values[row.name] for name, row in arguments_of(schema)}


def default_of(schema: type, name: str, missing: object = MISSING) -> Any:
    """The default that a schema class gives a field; `missing` where it gives none."""
    for one in fields(schema):
        if one.name == name:
            if one.default_factory is not MISSING:
                return one.default_factory()
            return missing if one.default is MISSING else one.default
    return missing
