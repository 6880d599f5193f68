"""A transformer that ranks share gives what one process gives: output and every gradient."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.distributed.rank_processes import outputs, run_processes

PEER = "tests/distributed/tensor_peer.py"
TOLERANCE = 1e-5  # fp32; sums are taken in another order

ON_TWO = (
    "2b",
    "5b",
    "5b_i2v",
    "1.5",
    "1.5_i2v",
    "5b:bare",
    "2b:plain",
    "2b:swiglu,rms",
    "5b:recompute",
    "5b:lora",
    "2b:dropout",
    "5b:dropout,recompute",
    "1.5_i2v:second,swiglu",
)
ON_THREE = ("2b:six", "2b:thirty", "2b:six,swiglu,rms,recompute", "2b:six,dropout", "5b:six,lora")


@pytest.fixture(scope="module")
def found() -> dict[tuple[int, str], list[dict[str, Any]]]:
    """Number of ranks that share and case -> the reports of all of these."""
    reports: dict[tuple[int, str], list[dict[str, Any]]] = {}
    cases = [*(f"2/{case}" for case in ON_TWO), *(f"3/{case}" for case in ON_THREE)]
    for text in outputs(run_processes([PEER, *cases], ranks=range(3), world_size=3)):
        for report in json.loads(text):
            reports.setdefault((report["size"], report["case"]), []).append(report)
    return reports


@pytest.mark.parametrize(
    ("size", "case"), [*((2, case) for case in ON_TWO), *((3, case) for case in ON_THREE)]
)
def test_output_and_gradients_are_those_of_one_process(
    size: int, case: str, found: dict[tuple[int, str], list[dict[str, Any]]]
) -> None:
    reports = found[size, case]

    assert len(reports) == size
    for report in reports:
        assert report["output"] <= TOLERANCE
        assert report["gradient"] <= TOLERANCE, report["worst"]
        assert report["shapes"]
        assert report["bits"] == reports[0]["bits"]  # what is on every rank stays the same


def test_each_rank_holds_its_part_of_the_wide_layers_only(
    found: dict[tuple[int, str], list[dict[str, Any]]],
) -> None:
    # 2B-like with 30 heads of 16: attention and MLP are 12 h^2 of all parameters.
    share = found[3, "2b:thirty"][0]["share"]

    wide = 2 * 12 * 480**2
    rest = 2 * (12 * 480 * 17 + 4 * 480) + 5 * 480 * 90
    assert share == pytest.approx((wide / 3 + rest) / (wide + rest), abs=0.02)
