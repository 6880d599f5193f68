"""A row of the registry: what a `target:` name of a YAML stands for.

The table itself is `app.registry.TARGETS`; it is handed to the parser as an argument, because
configuration lies below it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from app.errors import ConfigError

Params = TypeVar("Params")


@dataclass(frozen=True, slots=True)
class Component(Generic[Params]):
    """A class chosen by name, with its typed parameters.

    `target` is the name in the YAML (upstream's), `implementation` our class as
    "package.module:Class". Nothing is imported until `run` builds the parts.
    """

    target: str
    implementation: str
    params: Params


@dataclass(frozen=True, slots=True)
class RegistryRow:
    """One name that a configuration may use.

    Attributes:
        params: schema class of its `params`; `dict` for a user's own class, left unchecked.
        implementation: our class as "package.module:Class"; None when the row only describes a
            part of the class above it (a position mixin of the network) or is ignored.
        role: place where the name may stand; "any" for a user's own class.
        choice: value that the schema records instead of a class (`PositionConfig.kind`).
        scheduler: of a sampler, "dpm" or "ddim": the scheduler of diffusers that samples alike;
            None where diffusers has none.
    """

    params: type
    implementation: str | None = None
    role: str = "any"
    choice: str = ""
    scheduler: Literal["dpm", "ddim"] | None = None


Registry = Mapping[str, RegistryRow]


def load_class(implementation: str, where: str) -> Any:
    """Import "package.module:Class": a row of the table, or a class that a user registered.

    Raises:
        ConfigError: it cannot be imported.
    """
    module_name, _, class_name = implementation.partition(":")
    try:
        return getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{implementation} cannot be imported: {error}",
            where=where,
            fix="check --register NAME=package.module:Class and PYTHONPATH",
        ) from error
