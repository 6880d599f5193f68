"""A clip whose time is shared by ranks is encoded as in one process."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.distributed.rank_processes import outputs, run_processes

TOLERANCE = 1e-5  # fp32; statistics are summed in another order
OF_BF16 = 0.05  # its own statistics are rounded elsewhere


@pytest.fixture(scope="module")
def reports() -> list[dict[str, Any]]:
    """What each rank of a gang of three found, by the number of ranks that shared."""
    ended = run_processes(["tests/distributed/vae_peer.py"], range(3), world_size=3, timeout_s=240)
    return [json.loads(text) for text in outputs(ended)]


@pytest.fixture(params=[2, 3])
def found(
    request: pytest.FixtureRequest, reports: list[dict[str, Any]]
) -> tuple[int, list[dict[str, Any]]]:
    """The number of ranks that shared, and what each of them found."""
    size = str(request.param)
    shared = [report[size] for report in reports if size in report]
    assert len(shared) == request.param
    return request.param, shared


def deviations(reports: list[dict[str, Any]], prefix: str) -> dict[str, float]:
    """The largest over the ranks, by case."""
    names = [name for name in reports[0] if name.startswith(prefix)]
    return {name: max(report[name] for report in reports) for name in names}


def test_encode_equals_one_process(found: tuple[int, list[dict[str, Any]]]) -> None:
    cases = deviations(found[1], "encode")

    assert len(cases) == 6
    assert max(cases.values()) <= TOLERANCE, cases


def test_clips_of_different_ranks_take_turns(found: tuple[int, list[dict[str, Any]]]) -> None:
    cases = deviations(found[1], "in turn")

    assert max(cases.values()) <= TOLERANCE, cases


def test_bf16_is_close(found: tuple[int, list[dict[str, Any]]]) -> None:
    assert deviations(found[1], "bf16")["bf16"] <= OF_BF16
