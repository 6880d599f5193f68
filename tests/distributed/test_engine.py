"""The engine under every ZeRO stage: what is saved and restored, at the same layout and others.

The losses of an undisturbed run are compared with those of a run that was saved after step 3,
and restored in new processes. Same layout: equal to the last bit. Another world size: gradient
sums are taken in another order, so within the bounds below.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.rank_processes import outputs, run_processes

TRAINER = "tests/distributed/trainer.py"
STAGES = (0, 1, 2, 3)
PRECISIONS = ("fp32", "bf16")
FP32_REL = 5e-7  # other order of sums, three steps
BF16_REL = 2e-3  # gradients are reduced in bf16

STOCK = {
    "zero_optimization": {
        "stage": 2,
        "contiguous_gradients": False,
        "overlap_comm": True,
        "reduce_scatter": True,
        "reduce_bucket_size": 1000000000,
        "allgather_bucket_size": 1000000000,
        "load_from_fp32_weights": False,
    },
    "zero_allow_untested_optimizer": True,
    "optimizer": {"type": "sat.ops.FusedEmaAdam", "params": {"lr": 1e-5}},
    "activation_checkpointing": {
        "partition_activations": False,
        "contiguous_memory_optimization": False,
    },
    "wall_clock_breakdown": False,
    "steps_per_print": 50,
}


@dataclass(frozen=True)
class Ran:
    """Reports of rank 0, by the name of the job."""

    reports: dict[str, dict[str, Any]]
    err: str

    def losses(self, name: str) -> list[float]:
        return [float.fromhex(loss) for loss in self.reports[name]["losses"]]


def run(folder: Path, world: int, jobs: dict[str, dict[str, Any]]) -> Ran:
    path = folder / f"jobs-{len(list(folder.glob('jobs-*')))}.json"
    path.write_text(json.dumps(list(jobs.values())))
    ended = run_processes([TRAINER, str(path)], ranks=range(world), world_size=world)
    reports = [json.loads(text.splitlines()[-1]) for text in outputs(ended)]
    for report in reports[1:]:
        assert [job["losses"] for job in report] == [job["losses"] for job in reports[0]]
    return Ran(dict(zip(jobs, reports[0], strict=True)), ended[0].err)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engine")


@pytest.fixture(scope="module")
def whole(folder: Path) -> Ran:
    """Undisturbed runs of six steps, and runs that save after three, on two processes."""
    jobs: dict[str, dict[str, Any]] = {}
    for name, extra in variants().items():
        jobs[name] = {"start": 0, "stop": 6, **extra}
        jobs[f"{name} saved"] = {
            "start": 0,
            "stop": 3,
            "save": str(folder / name.replace(" ", "-")),
            **extra,
        }
    jobs["poisoned"] = {"stage": 2, "precision": "fp32", "start": 0, "stop": 6, "poison": 2}
    jobs["poisoned plain"] = {**jobs["poisoned"], "stage": 0}
    jobs["poisoned bf16"] = {**jobs["poisoned"], "precision": "bf16"}
    jobs["poisoned three"] = {**jobs["poisoned"], "stage": 3, "accumulation": 2}
    jobs["never poisoned"] = {**jobs["poisoned"], "poison": None}
    return run(folder, 2, jobs)


def variants() -> dict[str, dict[str, Any]]:
    plain = {
        f"{precision} {stage}": {"stage": stage, "precision": precision}
        for precision in PRECISIONS
        for stage in STAGES
    }
    return plain | {
        "bf16 2 accumulated": {"stage": 2, "precision": "bf16", "accumulation": 2},
        "fp32 2 ema": {"stage": 2, "precision": "fp32", "ema": True},
        "bf16 1 ema": {"stage": 1, "precision": "bf16", "ema": True},
        "fp32 3 ema": {"stage": 3, "precision": "fp32", "ema": True},
        "fp32 0 ema": {"stage": 0, "precision": "fp32", "ema": True},
        "bf16 2 stock": {"stage": 2, "precision": "bf16", "deepspeed": STOCK},
    }


@pytest.fixture(scope="module")
def resumed(folder: Path, whole: Ran) -> Ran:
    """The saved runs continued in new processes: at the same layout, and at other stages."""
    jobs = {
        name: {"start": 3, "stop": 6, "load": str(folder / name.replace(" ", "-")), **extra}
        for name, extra in variants().items()
    }
    for precision in PRECISIONS:
        jobs |= {
            f"{precision} 2 as {stage}": {
                **jobs[f"{precision} 2"],
                "stage": stage,
            }
            for stage in (0, 1, 3)
        }
    for name in ("fp32 2 ema", "fp32 3 ema"):
        jobs[f"{name} resaved"] = {**jobs[name], "stop": 3, "save": str(folder / f"{name}-again")}
    return run(folder, 2, jobs)


@pytest.mark.parametrize("name", variants())
def test_a_run_restored_at_the_same_layout_is_equal_to_the_last_bit(
    name: str, whole: Ran, resumed: Ran
) -> None:
    assert resumed.reports[name]["losses"] == whole.reports[name]["losses"][3:]
    assert resumed.reports[name]["norms"] == whole.reports[name]["norms"][3:]
    assert resumed.reports[name]["adam_steps"] == {"0": 6, "1": 6}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_stage_2_continues_as_stage_1_to_the_last_bit(
    precision: str, whole: Ran, resumed: Ran
) -> None:
    expected = whole.reports[f"{precision} 2"]["losses"][3:]

    assert resumed.reports[f"{precision} 2 as 1"]["losses"] == expected


@pytest.mark.parametrize("stage", [0, 3])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_stage_2_continues_at_other_stages(
    precision: str, stage: int, whole: Ran, resumed: Ran
) -> None:
    bound = FP32_REL if precision == "fp32" else BF16_REL

    losses = resumed.losses(f"{precision} 2 as {stage}")

    assert losses == pytest.approx(whole.losses(f"{precision} 2")[3:], rel=bound)


@pytest.mark.parametrize("world", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_every_stage_continues_at_another_world_size(world: int, folder: Path, whole: Ran) -> None:
    jobs = {
        f"{precision} {stage}": {
            "stage": stage,
            "precision": precision,
            "start": 3,
            "stop": 6,
            "load": str(folder / f"{precision}-{stage}"),
        }
        for precision in PRECISIONS
        for stage in STAGES
    }

    ran = run(folder, world, jobs)

    for name in jobs:
        bound = FP32_REL if name.startswith("fp32") else BF16_REL
        assert ran.losses(name) == pytest.approx(whole.losses(name)[3:], rel=bound), name


@pytest.mark.slow
def test_a_save_of_one_process_continues_on_two(folder: Path, whole: Ran) -> None:
    job = {"stage": 2, "precision": "fp32", "start": 0, "stop": 3}
    run(folder, 1, {"one": {**job, "save": str(folder / "one")}})

    ran = run(folder, 2, {"two": {**job, "start": 3, "stop": 6, "load": str(folder / "one")}})

    assert ran.losses("two") == pytest.approx(whole.losses("fp32 2")[3:], rel=FP32_REL)


@pytest.mark.parametrize("stage", STAGES)
def test_the_first_steps_are_those_of_plain_adamw(
    stage: int, whole: Ran, reference: Callable[[], list[float]]
) -> None:
    assert whole.losses(f"fp32 {stage}") == pytest.approx(reference(), rel=1e-5)


@pytest.fixture(scope="module")
def reference() -> Callable[[], list[float]]:
    """The same six steps by torch alone: whole batch, two groups, clipping at 0.5."""
    import torch

    from tests.distributed.trainer import GLOBAL_BATCH, SmallNetwork, data

    def run_plain() -> list[float]:
        network = SmallNetwork()
        enter, leave, norm = network.enter, network.leave, network.norm
        optimizer = torch.optim.AdamW(
            [
                {"params": [enter.weight, leave.weight], "weight_decay": 1e-2},
                {
                    "params": [enter.bias, norm.weight, norm.bias, leave.bias],
                    "weight_decay": 0.0,
                },
            ],
            lr=1e-2,
            betas=(0.9, 0.95),
        )
        losses = []
        for step in range(6):
            rows = torch.stack([data(step, i) for i in range(GLOBAL_BATCH)])
            loss = ((network(rows[:, :64]) - rows[:, 64:]) ** 2).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 0.5)
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 * min(1.0, (step + 1) / 3)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
        return losses

    return run_plain


@pytest.mark.parametrize("name", ["poisoned", "poisoned plain", "poisoned bf16", "poisoned three"])
def test_a_loss_that_is_no_number_skips_the_step_on_every_rank(name: str, whole: Ran) -> None:
    losses, report = whole.losses(name), whole.reports[name]

    assert report["skipped"] == [False, False, True, False, False, False]
    assert losses[2] != losses[2]  # NaN, although only the last rank had it
    assert all(loss == loss for loss in (*losses[:2], *losses[3:]))
    assert report["adam_steps"] == {"0": 5, "1": 5}
    if name == "poisoned":
        assert losses[:2] == whole.losses("never poisoned")[:2]


def test_parameters_are_told_with_shape_and_group(whole: Ran) -> None:
    assert whole.reports["fp32 3"]["infos"] == {
        "enter.weight": [[17, 64], 0],
        "leave.weight": [[5, 17], 0],
        "enter.bias": [[17], 1],
        "norm.weight": [[17], 1],
        "norm.bias": [[17], 1],
        "leave.bias": [[5], 1],
    }


@pytest.mark.parametrize("name", ["fp32 2 ema", "fp32 3 ema"])
def test_averages_come_back_as_they_were_saved(
    name: str, folder: Path, whole: Ran, resumed: Ran
) -> None:
    from tests.distributed.trainer import reader

    saved, again = reader(folder / name.replace(" ", "-")), reader(folder / f"{name}-again")

    for parameter, (shape, _) in whole.reports[name]["infos"].items():
        numel = shape[0] * (shape[1] if len(shape) > 1 else 1)
        average = saved(parameter, "ema", 0, numel)
        assert average.equal(again(parameter, "ema", 0, numel))
        assert not average.equal(saved(parameter, "master", 0, numel))
    assert resumed.reports[name]["updates"] == 6
