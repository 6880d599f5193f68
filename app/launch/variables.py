"""Environment variables read with their names kept, so that every value says where it is from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from app.errors import ConfigError

Value = TypeVar("Value", bound=int | str)


@dataclass(frozen=True, slots=True)
class Found(Generic[Value]):
    """A value, and the variable (or rule) that gave it."""

    value: Value
    source: str


def default(value: Value) -> Found[Value]:
    """A value that nobody gave."""
    return Found(value, "default")


class Variables:
    """Typed reading of an environment. An empty variable counts as absent."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ

    def has(self, name: str) -> bool:
        """Whether the variable is set to something."""
        return bool(self.environ.get(name, "").strip())

    def text(self, name: str) -> Found[str]:
        """The variable, which must be there (`has`)."""
        return Found(self.environ[name].strip(), name)

    def integer(self, name: str) -> Found[int] | None:
        """The variable as a whole number >= 0; None when absent; ConfigError when it is neither."""
        if not self.has(name):
            return None
        return Found(self._number(name, least=0), name)

    def positive(self, name: str) -> Found[int]:
        """The variable as a whole number >= 1, which must be there; ConfigError otherwise."""
        return Found(self._number(name, least=1), name)

    def count(self, name: str) -> Found[int] | None:
        """The variable as a whole number >= 1; None when absent; ConfigError otherwise."""
        return self.positive(name) if self.has(name) else None

    def node_range(self, name: str) -> tuple[Found[int], Found[int]]:
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
        return Found(low, name), Found(high, name)

    def fixed_nodes(self, name: str) -> Found[int]:
        """The number of nodes, which must not be a range."""
        least, most = self.node_range(name)
        if least.value != most.value:
            raise ConfigError(
                f"{name} is the range '{self.environ[name]}', but there is no elastic rendezvous",
                where=f"environment: {name} without PET_RDZV_ENDPOINT",
                fix="give the job an elasticPolicy, or a fixed number of nodes",
            )
        return most

    def _number(self, name: str, least: int) -> int:
        word = self.environ[name].strip()
        try:
            number = int(word)
        except ValueError:
            number = least - 1
        if number < least:
            raise ConfigError(
                f"{name} is '{word}', which is not a whole number >= {least}",
                where=f"environment: {name}",
                fix="correct the variable; in a PyTorchJob the operator sets it, "
                "so look for an env entry of the same name in your manifest",
            )
        return number
