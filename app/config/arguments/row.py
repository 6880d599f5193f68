"""What one argument is: the row type of the arguments table (app.config.arguments.table)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from app.config.kinds import Kind


class Disposition(Enum):
    """What becomes of an argument."""

    WORKS = "works"  # changes something, and a test shows it
    MAPPED = "mapped"  # sets a key elsewhere; `note` names it
    ACCEPTED = "accepted"  # changes nothing; one warning with the reason in `note`
    LATER = "later"  # its part is not built yet: any value but the default is refused


@dataclass(frozen=True, kw_only=True, slots=True)
class Argument:
    """One argument: `--name`, `args.name` in YAML, an attribute of upstream's Namespace."""

    name: str
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
