"""Mistakes and warnings of one configuration, collected while it is read.

Nothing here raises at the first mistake: a user sees all of them in one run.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from app.config.kinds import Kind
from app.errors import ConfigError, ConfigErrors

Built = TypeVar("Built")


class Problems:
    """Collects `ConfigError`s and warnings, with the file or flag that set each key."""

    def __init__(self, origins: Mapping[str, str] | None = None) -> None:
        self.origins: Mapping[str, str] = origins or {}
        self.errors: list[ConfigError] = []
        self.count = 0  # of the mistakes found, those not reported again included
        self.warnings: list[str] = []
        # Every key that a reader of a section asked for: editors get their schema from it.
        self.accepted: dict[str, Kind | None] = {}
        self.broken: set[str] = set()  # paths already reported whose value was taken out

    def add(self, what: str, *, where: str, fix: str) -> None:
        """Record a mistake at the dotted path `where`."""
        self.count += 1
        if where in self.broken:
            return
        error = ConfigError(what, where=self.locate(where), fix=fix)
        if str(error) not in [str(known) for known in self.errors]:
            self.errors.append(error)

    def accept(self, path: str, kind: Kind | None = None) -> None:
        """Note that the key at a dotted path is read, and what it takes (None: anything)."""
        self.accepted[path] = kind or self.accepted.get(path)

    def warn(self, text: str, *, where: str | None = None) -> None:
        """Record a warning once; `where` is the dotted path it is about."""
        line = f"{self.locate(where)}: {text}" if where else text
        if line not in self.warnings:
            self.warnings.append(line)

    def locate(self, path: str) -> str:
        """`path`, with the file or flag that set it (or the nearest section above it)."""
        probe = path
        while probe:
            origin = self.origins.get(probe)
            if origin == "default":
                return path
            if origin:
                return f"{path} {_place(origin)}"
            inside = [key for key in self.origins if key.startswith(f"{probe}.")]
            if inside:
                return f"{path} {_place(self.origins[inside[0]])}"
            probe = probe.rpartition(".")[0]
        return path

    def build(self, factory: Callable[..., Built], values: Mapping[str, Any]) -> Built | None:
        """Construct a schema class; its own range checks become recorded mistakes."""
        try:
            return factory(**values)
        except ConfigError as error:
            for one in error.errors if isinstance(error, ConfigErrors) else (error,):
                self.add(one.what, where=one.where, fix=one.fix)
            return None

    def checked(self, built: Built | None) -> Built:
        """What was built; raises ConfigErrors if any mistake was recorded on the way."""
        if self.errors or built is None:
            raise ConfigErrors(self.errors)
        return built

    def raise_errors(self) -> None:
        """Raise ConfigErrors if any mistake was recorded."""
        if self.errors:
            raise ConfigErrors(self.errors)


def _place(origin: str) -> str:
    return "on the command line" if origin.startswith(("override ", "flag ")) else f"in {origin}"


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The valid name most like `word`, by spelling, or by its last dotted part."""
    valid = sorted(names)
    close = difflib.get_close_matches(word, valid, n=1, cutoff=0.6)
    if close:
        return close[0]
    tails = {name.rsplit(".", 1)[-1]: name for name in valid}
    close = difflib.get_close_matches(word.rsplit(".", 1)[-1], list(tails), n=1, cutoff=0.6)
    return tails[close[0]] if close else None


def suggestion(word: str, names: Iterable[str]) -> str:
    """The `fix` line for a name that does not exist."""
    valid = sorted(names)
    best = nearest(word, valid)
    if best is not None:
        return f"did you mean '{best}'?"
    if len(valid) > 12:
        return "see docs/configuration.md for the keys of this section"
    return f"valid here: {', '.join(valid)}" if valid else "remove it: no key is valid here"
