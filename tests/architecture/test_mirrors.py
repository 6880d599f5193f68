"""Each module has the test file that mirrors it, or a row that names the tests that cover it.

app/data/loader.py -> tests/unit/data/test_loader.py; rows: covered_elsewhere.toml beside this file.
"""

from __future__ import annotations

import ast
import functools
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULES = {
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "app").rglob("*.py")
    if path.name != "__init__.py"
}
ROWS: dict[str, list[str]] = tomllib.loads(
    Path(__file__).with_name("covered_elsewhere.toml").read_text()
)
# "app.models.dit.transformer:DiffusionTransformer", "app.cli.train": modules named in a text
NAMED = re.compile(r"(app(?:\.\w+)+)(?::\w+)?")


def mirror_of(module: str) -> str:
    path = Path(module)
    return (Path("tests/unit") / path.relative_to("app").parent / f"test_{path.name}").as_posix()


@functools.cache
def uses(file: str) -> frozenset[str]:
    """Files of the product and of the tests that a file imports, or names in a text."""
    names: set[str] = set()
    files: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names |= {match[1] for match in NAMED.finditer(node.value)}
            if node.value.endswith(".py"):  # a script that ranks run: tests/distributed/peer.py
                files.add(node.value)
    files |= {name.replace(".", "/") + ".py" for name in names}
    return frozenset(file for file in files if (ROOT / file).is_file())


def reaches(test: str, module: str) -> bool:
    """Whether the module is among what a test imports, directly or through others."""
    seen, waiting = set(), [test]
    while waiting:
        file = waiting.pop()
        if file == module:
            return True
        if file not in seen:
            seen.add(file)
            waiting += uses(file)
    return False


def test_each_module_has_its_test_or_a_row() -> None:
    lost = {module for module in MODULES if not (ROOT / mirror_of(module)).is_file()}

    assert sorted(lost - set(ROWS)) == []


def test_no_row_is_left_for_a_module_that_is_gone_or_has_its_test() -> None:
    stale = {
        module for module in ROWS if module not in MODULES or (ROOT / mirror_of(module)).is_file()
    }

    assert sorted(stale) == []


def test_the_tests_of_a_row_exist_and_reach_the_module() -> None:
    wrong = [
        (module, test)
        for module, tests in ROWS.items()
        for test in tests
        if not (ROOT / test).is_file() or not reaches(test, module)
    ]

    assert wrong == []
    assert [module for module, tests in ROWS.items() if not tests] == []
