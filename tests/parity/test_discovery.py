"""Every recorded case has a runner."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.parity.golden import Case, all_cases, name_of


def claimed_items() -> set[str]:
    """The item prefixes in the ITEMS tuples of all runner modules, read without importing them."""
    claimed: set[str] = set()
    for path in Path(__file__).parent.glob("test_*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "ITEMS":
                claimed.update(ast.literal_eval(node.value))
    return claimed


@pytest.mark.parametrize("case", all_cases(), ids=name_of)
def test_a_runner_claims_the_item_of_every_case(case: Case) -> None:
    assert case.item.startswith(tuple(claimed_items())), f"no runner for item {case.item}"
