"""One rank that runs the loop with an engine that computes nothing, and tells what happened.

Prints "step <n>" before each step, so that a test can send a signal at a known place, and the
report as JSON at the end.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from app.distributed.groups import process_groups
from app.distributed.rank import RankInfo
from app.errors import CogvxError
from app.telemetry.metrics import Trackers
from app.training.engine import StepReport
from app.training.loop import LoopHooks, LoopPlan, LoopState, LoopTools, run_loop
from app.training.lr_schedule import LrSchedule
from app.training.signals import stop_on_signals

STEPS = 400


class NoEngine:
    def train(self) -> None:
        pass

    def backward(self, loss: Tensor) -> None:
        pass

    def step(self, lr: float) -> StepReport:
        return StepReport(grad_norm=1.0, skipped=False)


class Memory:
    def __init__(self) -> None:
        self.losses: list[float] = []

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.losses.append(values["loss"])

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def main() -> int:
    rank = RankInfo.from_environment(os.environ)
    memory, saved = Memory(), []
    code = 0
    plan = LoopPlan(
        steps=STEPS,
        accumulation=1,
        samples_per_step=2,
        schedule=LrSchedule(
            base=1.0,
            style="constant",
            curve="default",
            steps=STEPS,
            warmup=0,
            decay_ratio=0.1,
            auto_warmup=False,
        ),
    )

    def micro_step(step: int) -> Tensor:
        print(f"step {step}", flush=True)
        time.sleep(0.02)
        return torch.tensor(float(step + rank.rank))

    hooks = LoopHooks(micro_step=micro_step, save=lambda state: saved.append(state.step))
    with (
        process_groups(rank, device=torch.device("cpu"), join_s=60) as _,
        stop_on_signals() as stop,
    ):
        tools = LoopTools(trackers=Trackers([memory]), stop=stop)
        try:
            run_loop(NoEngine(), plan, hooks, tools, LoopState())
        except CogvxError as error:
            code = error.exit_code
    print(json.dumps({"losses": memory.losses, "saved": saved, "code": code}), flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
