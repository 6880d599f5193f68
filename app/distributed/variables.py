"""Environment variables read with their names kept, so that every value says where it is from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from app.errors import ConfigError

Value = TypeVar("Value", bound=int | str)

HIGHEST_PORT = 65535


@dataclass(frozen=True, slots=True)
class Sourced(Generic[Value]):
    """A value, and the variable (or rule) that gave it."""

    value: Value
    source: str


def default(value: Value) -> Sourced[Value]:
    """A value that no variable gives."""
    return Sourced(value, "default")


def derived(value: int, *parts: Sourced[int], sign: str = "/") -> Sourced[int]:
    """A value computed from others; its source names theirs."""
    names = list(dict.fromkeys(part.source for part in parts))
    return Sourced(value, f" {sign} ".join(names))


class Variables:
    """Typed reading of an environment. An empty variable counts as absent.

    `integer`, `count` and `port` are None for an absent variable; every method raises
    ConfigError for a value that cannot be read.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ

    def has(self, name: str) -> bool:
        """Whether the variable is set to something."""
        return bool(self.environ.get(name, "").strip())

    def text(self, name: str) -> Sourced[str]:
        """The variable, which must be there (`has`)."""
        return Sourced(self.environ[name].strip(), name)

    def integer(self, name: str, least: int = 0, most: int | None = None) -> Sourced[int] | None:
        """The variable as a whole number from `least` to `most`."""
        if not self.has(name):
            return None
        word = self.environ[name].strip()
        try:
            number = int(word)
        except ValueError:
            number = least - 1
        if number < least or (most is not None and number > most):
            allowed = f">= {least}" if most is None else f"from {least} to {most}"
            raise ConfigError(
                f"{name} is '{word}', which is not a whole number {allowed}",
                where=f"environment: {name}",
                fix="correct the variable; in a PyTorchJob the operator sets it, "
                "so look for an env entry of the same name in your manifest",
            )
        return Sourced(number, name)

    def count(self, name: str) -> Sourced[int] | None:
        """The variable as a whole number >= 1."""
        return self.integer(name, least=1)

    def port(self, name: str) -> Sourced[int] | None:
        """The variable as a TCP port."""
        return self.integer(name, least=1, most=HIGHEST_PORT)

    def node_range(self, name: str) -> tuple[Sourced[int], Sourced[int]]:
        """Least and most nodes out of torchrun's `N` or `min:max`; 1 and 1 when absent."""
        if not self.has(name):
            return default(1), default(1)
        least, _, most = self.text(name).value.partition(":")
        try:
            low, high = int(least), int(most or least)
        except ValueError:
            low, high = 0, 0
        if not 1 <= low <= high:
            raise ConfigError(
                f"'{self.environ[name]}' is not a number of nodes",
                where=f"environment: {name}",
                fix="write a number >= 1, or min:max for an elastic job",
            )
        return Sourced(low, name), Sourced(high, name)

    def fixed_nodes(self, name: str) -> Sourced[int]:
        """The number of nodes, which must not be a range."""
        least, most = self.node_range(name)
        if least.value != most.value:
            raise ConfigError(
                f"{name} is the range '{self.environ[name]}', but there is no elastic rendezvous",
                where=f"environment: {name} without PET_RDZV_ENDPOINT",
                fix="give the job an elasticPolicy, or a fixed number of nodes",
            )
        return most
