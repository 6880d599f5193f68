"""Every default has one home: a field of a schema class, or the row of an argument."""

from __future__ import annotations

import ast
import dataclasses
import importlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.config.argument import arguments_of
from app.config.arguments.data import DATA_ARGUMENTS
from app.config.arguments.run import RUN_ARGUMENTS
from app.config.arguments.table import ARGUMENTS, SCHEMAS
from app.config.kinds import integer
from app.config.reader import Field, rows
from app.config.schema.data import DataConfig
from tests.support.configs import ROOT

SECTIONS = sorted((ROOT / "app/config/sections").glob("[a-z]*.py"))
# Fields of the same name as an argument, with another meaning than its default.
APART = {
    "split": "nothing is split off unless `split` is given; upstream's Namespace says 1000,1,1",
    "mode": "CompatConfig.mode is the argument `compat`",
    "seed": "the shards' own seed, which nothing reads",
}


def schema_classes() -> Iterator[type]:
    for path in sorted((ROOT / "app/config/schema").glob("[a-z]*.py")):
        module = importlib.import_module(f"app.config.schema.{path.stem}")
        for found in vars(module).values():
            if dataclasses.is_dataclass(found) and found.__module__ == module.__name__:
                yield found  # type: ignore[misc]


def test_an_argument_is_declared_once() -> None:
    declared = [row.name for row in (*DATA_ARGUMENTS, *RUN_ARGUMENTS)]
    declared += [row.name for _, row in arguments_of(*SCHEMAS)]

    assert [name for name, count in Counter(declared).items() if count > 1] == []
    assert set(declared) == set(ARGUMENTS)


def test_every_schema_class_with_arguments_is_in_the_table() -> None:
    with_arguments = {schema for schema in schema_classes() if list(arguments_of(schema))}

    assert with_arguments == set(SCHEMAS)


def test_no_field_repeats_the_default_of_an_argument() -> None:
    repeated = [
        f"{schema.__name__}.{field.name}"
        for schema in schema_classes()
        for field in dataclasses.fields(schema)
        if field.name in ARGUMENTS
        and "argument" not in field.metadata
        and field.default is not dataclasses.MISSING
        and field.name not in APART
    ]

    # Not written again: `default_of(TrainingConfig, "model_parallel_size")`.
    assert repeated == ["DiTConfig.model_parallel_size"]


def test_a_table_cannot_repeat_the_default_of_its_schema_class() -> None:
    with pytest.raises(AssertionError, match="num_workers: DataConfig has the default"):
        rows(DataConfig, Field("num_workers", integer(0), 1))

    (derived,) = rows(DataConfig, Field("num_workers", integer(0)))
    assert derived.default == ARGUMENTS["num_workers"].default == 1


@pytest.mark.parametrize("path", SECTIONS, ids=lambda path: path.stem)
def test_a_default_in_a_section_is_of_a_key_that_no_schema_class_has(path: Path) -> None:
    names = {
        field.name
        for schema in schema_classes()
        for field in dataclasses.fields(schema)
        if field.default is not dataclasses.MISSING
    }
    # Derived from another key where it is absent, and upstream's JSON files for DeepSpeed.
    own = {"time_embed_dim", "inner_hidden_size"}
    second = []
    for call in ast.walk(ast.parse(path.read_text())):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "Field" and len(call.args) > 2:
            key = ast.literal_eval(call.args[0])
            is_dropped = len(call.args) > 3
            if key in names - own and not is_dropped:
                second.append(key)

    assert second == []
