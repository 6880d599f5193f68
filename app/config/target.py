"""A row of the registry: what a `target:` name of a YAML file means.

The table itself is `app.registry.TARGETS`; it is handed to the parser as an argument, because
configuration is below it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from app.errors import ConfigError

OWN = "own"  # role of a row made by --register
# Roles that a registered class can have; docs/configuration.md says what each must offer.
OWN_ROLES = ("dataset", "text encoder", "first stage", "sampler")

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
        implementation: our class as "package.module:Class"; empty when the row only describes a
            part of the class above it (a position mixin of the network) or is ignored.
        role: what the name can be used for; OWN for a user's own class.
        choice: value that the schema records instead of a class (`PositionConfig.kind`).
        scheduler: of a sampler, "dpm" or "ddim": the scheduler of diffusers that samples alike;
            None where diffusers has none.
    """

    params: type
    implementation: str = ""
    role: str = OWN
    choice: str = ""
    scheduler: Literal["dpm", "ddim"] | None = None


Registry = Mapping[str, RegistryRow]


def load_class(implementation: str, where: str, methods: Sequence[str] = ()) -> Any:
    """Import "package.module:Class": a row of the table, or a class that a user registered.

    Raises:
        ConfigError: it cannot be imported, or lacks one of the methods.
    """
    module_name, _, class_name = implementation.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except Exception as error:  # a user's module may fail in any way
        raise ConfigError(
            f"{implementation} cannot be imported: {type(error).__name__}: {error}",
            where=where,
            fix="check --register NAME=package.module:Class and PYTHONPATH",
        ) from error
    lacking = [name for name in methods if not callable(getattr(found, name, None))]
    if lacking:
        raise ConfigError(
            f"{implementation} has no method {' and no method '.join(lacking)}",
            where=where,
            fix="see docs/configuration.md, 'Classes of your own'",
        )
    return found
