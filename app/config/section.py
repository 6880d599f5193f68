"""A section of a configuration, as code written for upstream reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Section(dict[str, Any]):
    """A plain dict whose keys can also be read and set as attributes.

    Upstream's `args.model_config` is an OmegaConf node, so its users write
    `args.model_config.network_config.params`. This allows it, and stays a dict for JSON, YAML
    and comparison.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError:
            raise AttributeError(name) from None


def as_section(value: object) -> Any:
    """Nested dicts as nested Sections; lists and values are copied as they are."""
    if isinstance(value, Mapping):
        return Section({str(key): as_section(entry) for key, entry in value.items()})
    if isinstance(value, list | tuple):
        return [as_section(entry) for entry in value]
    return value
