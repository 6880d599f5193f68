"""Any value at any place gives a configuration or a clear mistake, never a traceback."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.config.command_line import CommandLine
from app.config.layers import Merged
from app.config.load import config_of
from app.config.problems import Problems
from app.config.runnable import lacking
from app.config.snapshot import snapshot
from app.errors import ConfigErrors
from app.registry import TARGETS
from tests.support.configs import TINY

STRANGE: tuple[object, ...] = (None, -1, "x", [], {"a": 1}, [None], float("nan"))


def whole() -> dict[str, Any]:
    sections: dict[str, Any] = {}
    for path in TINY[1:]:
        sections |= yaml.safe_load(Path(path).read_text())
    return sections


def places(value: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from places(entry, (*path, key))
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            yield from places(entry, (*path, index))


def with_value(sections: dict[str, Any], path: tuple[Any, ...], value: object) -> dict[str, Any]:
    changed = copy.deepcopy(sections)
    node: Any = changed
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = copy.deepcopy(value)
    return {key: entry for key, entry in changed.items() if isinstance(entry, dict)}


@pytest.mark.parametrize("section", ["args", "model", "data", "deepspeed"])
def test_strange_values_never_surprise(section: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sections = whole()
    outcomes = set()
    for path in places(sections[section], (section,)):
        for value in STRANGE:
            merged = Merged(sections=with_value(sections, path, value))
            monkeypatch.setattr("app.config.load.merge_layers", lambda *_, merged=merged: merged)
            try:
                config = config_of(CommandLine(flags={"base": ["a.yaml"]}), TARGETS)
            except ConfigErrors as mistakes:
                told = [bool(one.where and one.fix) for one in mistakes.errors]
                outcomes.add("mistakes, all told" if all(told) else "silent")
                continue
            outcomes.add("valid")
            lacking(config)
            snapshot(config)

    assert outcomes == {"mistakes, all told", "valid"}


def taken_out(
    where: str,
    sections: dict[str, Any],
    base: object,
    file: object,
    overrides: object,
    problems: Problems,
) -> Merged:
    """What merging leaves of a value that it cannot resolve."""
    problems.add("the interpolation cannot be resolved", where=where, fix="name a key")
    problems.broken.add(where)
    return Merged(sections=sections)


@pytest.mark.parametrize("section", ["args", "model", "data", "deepspeed"])
def test_a_value_that_was_taken_out_is_reported_once_and_surprises_nobody(
    section: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections = whole()
    for path in places(sections[section], (section,)):
        where = ".".join(map(str, path))
        taken = partial(taken_out, where, with_value(sections, path, None))
        monkeypatch.setattr("app.config.load.merge_layers", taken)
        with pytest.raises(ConfigErrors) as mistakes:
            config_of(CommandLine(flags={"base": ["a.yaml"]}), TARGETS)

        assert [one.where for one in mistakes.value.errors].count(where) == 1
