"""The engine of a single process: what a skipped step leaves, and how a restored run continues."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from app.distributed.groups import ProcessGroups
from app.training.engine import Engine, StepReport, load_deepspeed
from app.training.zero_partitions import EMA
from tests.unit.training.configs import training_config

STAGES = (0, 1, 2, 3)
GOOD = torch.linspace(-1, 1, 12).reshape(4, 3)
BAD = torch.full((4, 3), float("nan"))

Values = dict[tuple[str, str], Tensor]  # (name, kind) -> flat fp32


@pytest.fixture(autouse=True)
def _forget_the_last_world(groups: ProcessGroups, monkeypatch: pytest.MonkeyPatch) -> None:
    # DeepSpeed keeps its group of all ranks as long as the process lives, but each test here, and
    # each module that trains in this process, has a process group of its own.
    monkeypatch.setattr(load_deepspeed(on_cpu=True).utils.groups, "_WORLD_GROUP", None)


def started(groups: ProcessGroups, stage: int, *, seed: int = 0) -> Engine:
    """An engine with averages over a weight that decays and a bias that does not."""
    torch.manual_seed(seed)
    return Engine.start(nn.Linear(3, 2), training_config(zero_stage=stage, ema_decay=0.9), groups)


def step(engine: Engine, rows: Tensor) -> StepReport:
    engine.backward((engine.network(rows) - 1).square().mean())
    return engine.step(lr=0.1)


def values_of(engine: Engine) -> Values:
    """What the engine saves; alone, it owns every parameter from its first entry on."""
    fragments = list(engine.fragments())
    assert {fragment.start for fragment in fragments} == {0}
    return {(fragment.name, fragment.kind): fragment.values for fragment in fragments}


def averages_of(engine: Engine) -> dict[str, list[float]]:
    return {name: x.tolist() for (name, kind), x in values_of(engine).items() if kind == EMA}


@pytest.mark.parametrize("stage", STAGES)
def test_the_average_stands_still_at_a_skipped_step(stage: int, groups: ProcessGroups) -> None:
    engine = started(groups, stage)
    step(engine, GOOD)
    before = averages_of(engine)

    report = step(engine, BAD)

    assert report.skipped
    assert averages_of(engine) == before
    assert engine.average is not None
    assert engine.average.updates == 1
    assert not step(engine, GOOD).skipped
    assert averages_of(engine) != before
    assert engine.average.updates == 2


@pytest.mark.parametrize("stage", STAGES)
def test_the_step_after_a_restore_is_that_of_the_undisturbed_run(
    stage: int, groups: ProcessGroups
) -> None:
    undisturbed = started(groups, stage)
    for _ in range(3):
        step(undisturbed, GOOD)
    saved, adam_steps = values_of(undisturbed), undisturbed.adam_steps()

    def read(name: str, kind: str, start: int, numel: int) -> Tensor:
        return saved[name, kind][start : start + numel]

    restored = started(groups, stage, seed=1)
    restored.restore(read, adam_steps, ema_updates=3)

    assert restored.adam_steps() == adam_steps == {"0": 3, "1": 3}
    for engine in (undisturbed, restored):
        step(engine, GOOD)
    expected, found = values_of(undisturbed), values_of(restored)
    assert found.keys() == expected.keys()
    assert all(found[key].equal(expected[key]) for key in expected)
