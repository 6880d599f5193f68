"""Training a shared network under DeepSpeed: losses, norms and checkpoints of one process.

Every layout trains on the same global batch. Saves of one layout are continued at others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.rank_processes import outputs, run_processes
from tests.distributed.tensor_trainer import CLIPPING

TRAINER = "tests/distributed/tensor_trainer.py"
TOLERANCE = 1e-5
BF16_TOLERANCE = 2e-3  # sums are rounded in another order

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"stage": 0},
    "zero 1": {"stage": 1},
    "zero 2": {"stage": 2, "accumulation": 2, "ema": True, "kind": "2b"},
    "zero 3": {"stage": 3},
    "lora": {"stage": 2, "lora": True},
    "bf16": {"stage": 2, "precision": "bf16"},
    "dropout": {"stage": 1, "lora": True, "dropout": 0.2},
}
ON_FOUR = ("zero 1", "zero 2", "zero 3", "lora")  # dropout differs from copy to copy


@dataclass(frozen=True)
class Layout:
    """So many processes, of which `tensor` share a network."""

    world: int
    tensor: int


ALONE, SHARED, BOTH = Layout(1, 1), Layout(2, 2), Layout(4, 2)


def run(folder: Path, layout: Layout, jobs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Reports of rank 0 by name of the job; the losses are the same on all ranks."""
    path = folder / f"jobs-{len(list(folder.glob('jobs-*')))}.json"
    path.write_text(json.dumps([{"tensor": layout.tensor, **job} for job in jobs.values()]))
    ended = run_processes(
        [TRAINER, str(path)], ranks=range(layout.world), world_size=layout.world, timeout_s=280
    )
    reports = [json.loads(text.splitlines()[-1]) for text in outputs(ended)]
    for report in reports[1:]:
        assert str([j["losses"] for j in report]) == str([j["losses"] for j in reports[0]])
        for job, first in zip(report, reports[0], strict=True):
            assert job["norms"] == pytest.approx(first["norms"], nan_ok=True)
    return dict(zip(jobs, reports[0], strict=True))


def whole_and_saved(
    folder: Path, mark: str, names: Iterable[str] = VARIANTS
) -> dict[str, dict[str, Any]]:
    """Six steps undisturbed, and three with a save at the end."""
    jobs = {}
    for name in names:
        variant = VARIANTS[name]
        jobs[name] = variant
        place = folder / f"{name}-{mark}".replace(" ", "-")
        jobs[f"{name} saved"] = {**variant, "stop": 3, "save": str(place)}
    return jobs


def continued(
    folder: Path, mark: str, names: Iterable[str] = VARIANTS
) -> dict[str, dict[str, Any]]:
    """The saved runs from step 3 on."""
    return {
        f"{name} from {mark}": {
            **VARIANTS[name],
            "start": 3,
            "load": str(folder / f"{name}-{mark}".replace(" ", "-")),
        }
        for name in names
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tensor")


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, dict[str, Any]]:
    return run(folder, ALONE, whole_and_saved(folder, "one"))


@pytest.fixture(scope="module")
def shared(folder: Path, alone: dict[str, Any]) -> dict[str, dict[str, Any]]:
    jobs = whole_and_saved(folder, "two") | continued(folder, "one")
    jobs["poisoned"] = {**VARIANTS["zero 2"], "poison": 2}
    jobs["poisoned plain"] = {**VARIANTS["plain"], "poison": 2}
    return run(folder, SHARED, jobs)


@pytest.fixture(scope="module")
def alone_again(folder: Path, shared: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return run(folder, ALONE, continued(folder, "two"))


def bound(name: str) -> float:
    return BF16_TOLERANCE if name == "bf16" else TOLERANCE


def assert_equal(
    found: dict[str, Any], expected: dict[str, Any], first: int = 0, *, within: float = TOLERANCE
) -> None:
    assert found["losses"] == pytest.approx(expected["losses"][first:], rel=within)
    assert found["norms"] == pytest.approx(expected["norms"][first:], rel=10 * within)
    assert found["shapes"] == expected["shapes"]
    assert min(found["norms"]) > CLIPPING


def test_two_ranks_with_one_network_train_and_continue_a_save_as_one_process(
    tmp_path: Path,
) -> None:
    alone = run(tmp_path, ALONE, whole_and_saved(tmp_path, "one", ["zero 2"]))
    jobs = {"zero 2": VARIANTS["zero 2"]} | continued(tmp_path, "one", ["zero 2"])
    jobs["drifted"] = {**VARIANTS["zero 2"], "drift": True}
    shared = run(tmp_path, SHARED, jobs)

    assert shared["drifted"]["losses"] == shared["zero 2"]["losses"]  # put right before
    assert_equal(shared["zero 2"], alone["zero 2"])
    assert_equal(shared["zero 2 from one"], alone["zero 2"], first=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_two_ranks_with_one_network_train_as_one_process(
    name: str, alone: dict[str, Any], shared: dict[str, Any]
) -> None:
    assert_equal(shared[name], alone[name], within=bound(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_a_save_of_one_process_continues_on_two_that_share(
    name: str, alone: dict[str, Any], shared: dict[str, Any]
) -> None:
    assert_equal(shared[f"{name} from one"], alone[name], first=3, within=bound(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_a_save_of_two_that_share_continues_in_one_process(
    name: str, alone: dict[str, Any], alone_again: dict[str, Any]
) -> None:
    assert_equal(alone_again[f"{name} from two"], alone[name], first=3, within=bound(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["poisoned", "poisoned plain"])
def test_a_loss_that_is_no_number_on_one_rank_skips_the_step_on_both(
    name: str, shared: dict[str, Any]
) -> None:
    assert shared[name]["skipped"] == [False, False, True, False, False, False]
    assert all(loss == loss for loss in shared[name]["losses"][3:])


@pytest.mark.slow
def test_two_copies_shared_by_two_ranks_each_train_as_one_process(
    folder: Path, alone: dict[str, Any]
) -> None:
    jobs = whole_and_saved(folder, "four", ON_FOUR) | continued(folder, "one", ON_FOUR)
    found = run(folder, BOTH, jobs)
    again = run(folder, ALONE, continued(folder, "four", ON_FOUR))

    for name in ON_FOUR:
        assert_equal(found[name], alone[name])
        assert_equal(found[f"{name} from one"], alone[name], first=3)
        assert_equal(again[f"{name} from four"], alone[name], first=3)
