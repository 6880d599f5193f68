"""A replaceable part of a configuration: a `target:` of the YAML, resolved by the registry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

Params = TypeVar("Params")


@dataclass(frozen=True, slots=True)
class Part(Generic[Params]):
    """A class chosen by name, with its typed parameters.

    `target` is the name in the YAML (upstream's), `implementation` our class as
    "package.module:Class". Nothing is imported until `run` builds the parts.
    """

    target: str
    implementation: str
    params: Params
