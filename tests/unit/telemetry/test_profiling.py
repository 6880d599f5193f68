"""args.profiling on a CPU."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from app.telemetry.profiling import StepProfiler

CPU = torch.device("cpu")


def run_steps(profiler: StepProfiler, steps: int) -> None:
    for step in range(steps):
        profiler.before(step)
        torch.ones(8, 8) @ torch.ones(8, 8)
    profiler.close()


def test_three_steps_from_the_given_one_are_traced(tmp_path: Path) -> None:
    run_steps(StepProfiler(2, CPU, tmp_path), 10)

    (path,) = tmp_path.iterdir()
    names = [event.get("name") for event in json.loads(path.read_text())["traceEvents"]]
    assert path.name == "trace-from-step-2.json"
    assert names.count("aten::matmul") == 3


def test_a_run_that_ends_early_writes_what_it_has(tmp_path: Path) -> None:
    run_steps(StepProfiler(2, CPU, tmp_path), 3)

    assert len(list(tmp_path.iterdir())) == 1


def test_minus_one_traces_nothing(tmp_path: Path) -> None:
    run_steps(StepProfiler(-1, CPU, tmp_path), 3)

    assert list(tmp_path.iterdir()) == []
