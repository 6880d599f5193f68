"""Items 01 to 09 in fp32 on the device: the same runners as on the CPU.

On the CPU, where tests/parity has run every case, one case of each item shows that this works.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest

from tests.gpu.place import DEVICE, ON_GPU
from tests.parity import (
    golden,
    test_dit,
    test_engine_step,
    test_loss,
    test_samplers,
    test_schedule,
    test_vae,
)
from tests.parity.golden import Case

RUNNERS: tuple[ModuleType, ...] = (
    test_dit,
    test_schedule,
    test_loss,
    test_engine_step,
    test_samplers,
    test_vae,
)
Runner = Callable[[Case], None]


def comparisons() -> list[tuple[Runner, Case]]:
    """Every test of the runners that takes a recorded case, with each of its cases."""
    found: list[tuple[Runner, Case]] = []
    for module in RUNNERS:
        tests = [t for name, t in vars(module).items() if name.startswith("test_")]
        for test in tests:
            marks = getattr(test, "pytestmark", [])
            cases = [m.args[1] for m in marks if m.name == "parametrize" and m.args[0] == "case"]
            own = [case for listed in cases for case in listed if case.item < "10"]
            one_of_each = {case.item[:2]: case for case in reversed(own)}
            found += [(test, case) for case in (own if ON_GPU else one_of_each.values())]
    return found


def name_of(pair: tuple[Runner, Case]) -> str:
    return f"{pair[0].__name__.removeprefix('test_')}-{pair[1].path.stem}"


@pytest.mark.parametrize("pair", comparisons(), ids=name_of)
def test_numbers_on_the_device_are_the_recorded_ones(pair: tuple[Runner, Case]) -> None:
    test, case = pair
    assert golden.RUNNING.device == DEVICE
    test(case)


def test_every_item_that_was_recorded_is_compared() -> None:
    recorded = {case.item[:2] for case in golden.all_cases() if case.item < "10"}

    assert {case.item[:2] for _, case in comparisons()} == recorded
