"""The rooms of the house: no circles, no two packages that import each other, no crowded folder.

The direction between floors is import-linter's (pyproject.toml); it does not see circles inside a
floor.
"""

from __future__ import annotations

import ast
import graphlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
APP = ROOT / "app"
MOST_MODULES = 17  # of one folder, `__init__` aside

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in sorted(APP.rglob("*.py"))
    if path.name != "__init__.py"
}


def imported(path: Path) -> Iterator[str]:
    """Modules of the product that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
            yield from (name for name in names if name in MODULES)


IMPORTS = {name: set(imported(path)) - {name} for name, path in MODULES.items()}


def package_of(module: str) -> str:
    return module.rpartition(".")[0]


def test_no_module_imports_itself_through_others() -> None:
    order = list(graphlib.TopologicalSorter(IMPORTS).static_order())  # CycleError names a circle

    assert set(order) == set(MODULES)


def test_no_two_packages_import_each_other() -> None:
    """A package and a package inside it are one house; all others import in one direction."""
    uses: dict[str, set[str]] = defaultdict(set)
    for module, others in IMPORTS.items():
        uses[package_of(module)] |= {package_of(other) for other in others}

    pairs = [
        (one, other)
        for one in sorted(uses)
        for other in sorted(uses[one])
        if one < other and one in uses[other] and not other.startswith(f"{one}.")
    ]

    assert pairs == []


def test_no_folder_has_too_many_modules() -> None:
    count: dict[str, int] = defaultdict(int)
    for module in MODULES:
        count[package_of(module)] += 1

    assert {package: n for package, n in count.items() if n > MOST_MODULES} == {}
