"""Every row of the registry can be imported, and fits the schema it names."""

from __future__ import annotations

import dataclasses
import importlib
import re
from pathlib import Path

import pytest

from app.registry import TARGETS
from tests.support.configs import CONFIGS

IMPLEMENTED = {name: row for name, row in TARGETS.items() if row.implementation}


@pytest.mark.parametrize("name", IMPLEMENTED)
def test_implementation_can_be_imported(name: str) -> None:
    module, _, attribute = str(IMPLEMENTED[name].implementation).partition(":")

    found = getattr(importlib.import_module(module), attribute)

    assert callable(found)


@pytest.mark.parametrize("name", TARGETS)
def test_row_has_a_role_and_a_schema(name: str) -> None:
    row = TARGETS[name]

    assert row.role != "any"
    assert dataclasses.is_dataclass(row.params)


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_target_of_our_files_is_in_the_table(path: Path) -> None:
    named = re.findall(r"^\s*(?:- )?(?:target|type): (\S+)", path.read_text(), re.MULTILINE)

    assert set(named) <= set(TARGETS)


def test_aliases_that_people_use_are_in_the_table() -> None:
    tails = {name.rsplit(".", 1)[-1] for name in TARGETS}

    assert {
        "Basic2DPositionEmbeddingMixin",
        "VideoDDIMSampler",
        "VPODEDPMPP2MSampler",
        "VanillaCFG",
        "IdentityGuider",
        "NoDynamicThresholding",
        "OpenAIWrapper",
        "VideoDataset",
    } <= tails
