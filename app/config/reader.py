"""Reading one section of a configuration: fields by table, unknown keys, `target:` names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Final

from app.config.argument import default_of
from app.config.kinds import Kind, choice, exactly
from app.config.problems import Problems, nearest, suggestion
from app.config.target import OWN, OWN_ROLES, Component, Registry, RegistryRow


class _Required:
    """Marks a field without a default."""


REQUIRED: Final = _Required()


@dataclass(frozen=True, slots=True)
class Field:
    """One key of a section.

    `name` is the field of the schema class when it is not the YAML key; an empty `name` means
    that the key is checked and then dropped. A field of a schema class has its default there:
    see `rows`.
    """

    key: str
    kind: Kind
    default: Any = REQUIRED
    name: str | None = None


def rows(schema: type, *table: Field) -> tuple[Field, ...]:
    """A table of keys with the defaults of the schema class that they fill."""
    found = []
    for row in table:
        default = default_of(schema, row.key if row.name is None else row.name, REQUIRED)
        assert REQUIRED in (default, row.default), f"{row.key}: {schema.__name__} has the default"
        found.append(row if default is REQUIRED else replace(row, default=default))
    return tuple(found)


def constant(key: str, expected: object, why: str) -> Field:
    """A key that may be given with one value only."""
    return Field(key, exactly(expected, why), expected, "")


@dataclass(frozen=True, slots=True)
class Context:
    """What every section needs: the table of names, and where mistakes go."""

    targets: Registry
    problems: Problems


class Reader:
    """Reads the keys of one mapping and remembers which ones are known."""

    def __init__(self, node: object, where: str, problems: Problems) -> None:
        self.where = where
        self.problems = problems
        self.known: set[str] = set()
        self.values: dict[str, Any] = {}
        if isinstance(node, Mapping):
            self.values = {str(key): value for key, value in node.items()}
        elif node is not None:
            problems.add(
                f"expected a section of keys, found {node!r}",
                where=where,
                fix="indent the keys of this section below its name",
            )

    def path(self, key: str) -> str:
        """Dotted path of a key of this section."""
        return f"{self.where}.{key}" if self.where else key

    def has(self, key: str) -> bool:
        """Whether the key is there; it is a known key from now on."""
        self.known.add(key)
        return key in self.values

    def raw(self, key: str) -> Any:
        """The value as it was written, None if it is absent; the key is known from now on."""
        self.known.add(key)
        return self.values.get(key)

    def value(self, field: Field) -> Any:
        """The converted value of one field; its default (or None) after a mistake."""
        self.problems.accept(self.path(field.key), field.kind)
        if not self.has(field.key):
            if field.default is REQUIRED:
                self.problems.add(
                    f"'{field.key}' is missing",
                    where=self.path(field.key),
                    fix=f"give {field.kind.noun}",
                )
                return None
            return field.default
        raw = self.values[field.key]
        if raw is None and field.default is None:
            return None
        try:
            return field.kind.convert(raw)
        except (ValueError, TypeError, OverflowError):
            self.problems.add(
                f"'{field.key}' is {raw!r}",
                where=self.path(field.key),
                fix=f"give {field.kind.noun}",
            )
            return None if field.default is REQUIRED else field.default

    def fields(self, table: Iterable[Field]) -> dict[str, Any]:
        """All fields of a table, by the names of the schema class."""
        found = {}
        for field in table:
            value = self.value(field)
            if field.name != "":
                found[field.name or field.key] = value
        return found

    def child(self, key: str, *, required: bool = False) -> Reader | None:
        """A section below this one; None when it is absent."""
        node = self.raw(key)
        if node is None:
            if required:
                self.problems.add(
                    f"section '{key}' is missing", where=self.path(key), fix=f"add '{key}:'"
                )
            return None
        return Reader(node, self.path(key), self.problems)

    def dead(self, reasons: Mapping[str, str]) -> None:
        """Accept keys that change nothing, with one warning each."""
        for key, reason in reasons.items():
            if self.has(key):
                self.problems.warn(f"'{key}' has no effect: {reason}", where=self.path(key))

    def close(self) -> None:
        """Report every key that is not known."""
        for key in self.known:
            self.problems.accept(self.path(key))
        for key in self.values:
            if key not in self.known:
                self.problems.add(
                    f"unknown key '{key}'",
                    where=self.path(key),
                    fix=suggestion(key, self.known),
                )


@dataclass(frozen=True, slots=True)
class OpenComponent:
    """A `target:` section whose name was found in the table."""

    name: str
    target: RegistryRow
    node: Reader  # the section itself, for keys beside target and params
    params: Reader

    @property
    def registered(self) -> bool:
        """Whether the class is the user's own: its params are not checked."""
        return self.target.role == OWN

    def component(self, params: Any) -> Component[Any]:
        """The class with its parameters."""
        return Component(self.name, self.target.implementation, params)


def open_part(node: object, where: str, role: str, context: Context) -> OpenComponent | None:
    """Read `target` and find its row; None, with the mistake recorded, if there is none."""
    reader = Reader(node, where, context.problems)
    if not reader.values:
        if node is None or isinstance(node, Mapping):
            context.problems.add(
                "section is missing or empty", where=where, fix="give 'target' and 'params'"
            )
        return None
    if not reader.has("target"):
        context.problems.add(
            "'target' is missing",
            where=reader.path("target"),
            fix="valid here: " + ", ".join(names_of(role, context.targets)),
        )
        return None
    context.problems.accept(reader.path("target"), choice(*names_of(role, context.targets)))
    name = str(reader.values["target"])
    row = context.targets.get(name)
    node = reader.raw("params")
    if row is None or row.role not in (role, *((OWN,) if role in OWN_ROLES else ())):
        _report_target(name, row, reader.path("target"), role, context)
        row = _meant(node, role, context.targets)
        if row is None:
            return None
    params = Reader(node, reader.path("params"), context.problems)
    return OpenComponent(name, row, reader, params)


def open_below(owner: Reader, key: str, role: str, context: Context) -> OpenComponent | None:
    """As `open_part`, for a key of a section; `target` and `params` are its only keys."""
    part = open_part(owner.raw(key), owner.path(key), role, context)
    if part is not None:
        part.node.close()
    return part


def names_of(role: str, targets: Registry) -> list[str]:
    """Names that are valid for one role, sorted."""
    return sorted(name for name, row in targets.items() if row.role == role)


def _meant(params: object, role: str, targets: Registry) -> RegistryRow | None:
    """The row whose params these seem to be, so that a wrong name does not hide their mistakes."""
    if not isinstance(params, Mapping):
        return None
    best: RegistryRow | None = None
    most = 0
    for row in targets.values():
        if row.role == role and is_dataclass(row.params):
            shared = len({field.name for field in fields(row.params)} & set(params))
            if shared > most:
                best, most = row, shared
    return best


def _report_target(
    name: str, row: RegistryRow | None, where: str, role: str, context: Context
) -> None:
    valid = names_of(role, context.targets)
    best = nearest(name, valid)
    hint = f"did you mean '{best}'? " if best else ""
    what = f"unknown target '{name}'" if row is None else f"target '{name}' is not a {role}"
    own = "a class of your own needs --register NAME=package.module:Class"
    if role not in OWN_ROLES:
        own = f"a class of your own (--register) can be a {', a '.join(OWN_ROLES)}"
        if row is not None and row.role == OWN:
            what = f"a class of your own cannot be a {role}: '{name}'"
    context.problems.add(
        what,
        where=where,
        fix=f"{hint}valid here: {', '.join(valid)}; {own}",
    )
