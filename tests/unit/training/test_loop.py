"""The loop, driven with an engine that computes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from app.distributed.groups import ProcessGroups
from app.errors import PreemptedError
from app.telemetry.metrics import Trackers
from app.training.engine import StepReport
from app.training.health import DivergedError, Health
from app.training.loop import LoopHooks, LoopPlan, LoopState, LoopTools, run_loop
from app.training.lr_schedule import LrSchedule

pytestmark = pytest.mark.usefixtures("groups")

PLAN = LoopPlan(
    steps=6,
    accumulation=1,
    samples_per_step=2,
    schedule=LrSchedule(
        base=1.0,
        style="constant",
        curve="default",
        steps=6,
        warmup=2,
        decay_ratio=0.1,
        auto_warmup=False,
    ),
)


@dataclass
class Diary:
    """Everything that happened, in order."""

    events: list[str] = field(default_factory=list)
    records: list[dict[str, float]] = field(default_factory=list)

    # as an engine

    def train(self) -> None:
        pass

    def backward(self, loss: Tensor) -> None:
        self.events.append(f"backward {float(loss):g}")

    def step(self, lr: float) -> StepReport:
        self.events.append(f"step {lr:g}")
        bad = self.events[-2] == "backward nan"
        return StepReport(grad_norm=float("inf") if bad else 2.0, skipped=bad)

    # as a tracker

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.records.append({"step": step, **values})

    def flush(self) -> None:
        self.events.append("flush")

    def close(self) -> None:
        pass

    # as hooks

    def save(self, state: LoopState) -> None:
        self.events.append(f"save {state.step}")

    def evaluate(self, state: LoopState) -> dict[str, float]:
        self.events.append(f"evaluate {state.step}")
        return {"valid_loss": 0.5}

    def kinds(self, *wanted: str) -> list[str]:
        return [event for event in self.events if event.split()[0] in wanted]


def run(
    diary: Diary,
    plan: LoopPlan = PLAN,
    micro: Callable[[int], tuple[Tensor, dict[str, Tensor]]] | None = None,
    state: LoopState | None = None,
    tools: LoopTools | None = None,
) -> LoopState:
    def micro_step(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        loss = torch.tensor(float(step))
        return loss, {"loss": loss}

    tools = tools or LoopTools()
    tools.trackers = Trackers([diary])
    hooks = LoopHooks(micro_step=micro or micro_step, save=diary.save, evaluate=diary.evaluate)
    return run_loop(diary, plan, hooks, tools, state or LoopState())


def test_every_step_is_on_record_with_its_own_numbers() -> None:
    diary = Diary()

    state = run(diary)

    assert state == LoopState(step=6)
    assert [record["step"] for record in diary.records] == [1, 2, 3, 4, 5, 6]
    assert [record["loss"] for record in diary.records] == [0, 1, 2, 3, 4, 5]
    assert [record["lr"] for record in diary.records] == [0.5, 1, 1, 1, 1, 1]
    assert {record["grad_norm"] for record in diary.records} == {2.0}
    assert {record["skipped"] for record in diary.records} == {0.0}


def test_the_loss_of_a_step_is_the_mean_of_its_micro_steps() -> None:
    diary, losses = Diary(), iter([1.0, 2.0, 6.0, 0.0, 0.0, 3.0])

    def micro(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        loss = torch.tensor(next(losses))
        return loss, {"loss": loss, "extra": 2 * loss}

    run(diary, replace(PLAN, steps=2, accumulation=3), micro)

    assert [record["loss"] for record in diary.records] == [3.0, 1.0]
    assert [record["extra"] for record in diary.records] == [6.0, 2.0]
    assert diary.kinds("backward", "step")[:4] == [
        "backward 1",
        "backward 2",
        "backward 6",
        "step 0.5",
    ]


def test_saves_and_validations_come_at_their_intervals_and_a_save_at_the_end() -> None:
    diary = Diary()

    run(diary, replace(PLAN, save_interval=4, eval_interval=2))

    assert diary.kinds("save", "evaluate") == [
        "evaluate 2",
        "save 4",
        "evaluate 4",
        "save 6",
        "evaluate 6",
    ]
    assert [record["step"] for record in diary.records if "valid_loss" in record] == [2, 4, 6]


def test_records_are_flushed_before_each_save() -> None:
    diary = Diary()

    run(diary, replace(PLAN, save_interval=2))

    for index, event in enumerate(diary.events):
        if event.startswith("save"):
            assert diary.events[index - 1] == "flush"


def test_exit_interval_saves_once_and_stops() -> None:
    diary = Diary()

    state = run(diary, replace(PLAN, save_interval=2, exit_interval=4))

    assert state == LoopState(step=4, stopped_early=True)
    assert diary.kinds("save") == ["save 2", "save 4"]


def test_the_end_of_the_run_is_no_early_exit() -> None:
    state = run(Diary(), replace(PLAN, exit_interval=3, steps=3))

    assert state.stopped_early is False


def test_a_stop_is_taken_at_the_step_boundary_after_a_save() -> None:
    diary, tools = Diary(), LoopTools()

    def micro(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        if step == 2:
            tools.stop.requested = True
        return torch.tensor(1.0), {}

    with pytest.raises(PreemptedError) as caught:
        run(diary, micro=micro, tools=tools)

    assert caught.value.exit_code == 143
    assert "step 3 of 6" in caught.value.where
    assert diary.kinds("save") == ["save 3"]


def test_a_resumed_run_goes_on_with_the_next_step() -> None:
    diary = Diary()

    state = run(diary, state=LoopState(step=4, skipped_steps=1))

    assert state == LoopState(step=6, skipped_steps=1)
    assert [record["loss"] for record in diary.records] == [4, 5]


def test_a_finished_run_does_nothing() -> None:
    diary = Diary()

    state = run(diary, state=LoopState(step=6))

    assert state.step == 6
    assert diary.events == []


def test_bad_losses_are_skipped_and_counted_and_do_not_hide_the_others() -> None:
    diary, logged = Diary(), []

    def micro(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.tensor(float("nan") if step in (1, 3) else 2.0), {}

    hooks = LoopHooks(micro_step=micro, on_log=lambda state, facts: logged.append(facts))
    state = run_loop(diary, replace(PLAN, log_interval=6), hooks, LoopTools(), LoopState())

    assert state == LoopState(step=6, skipped_steps=2)
    assert logged[-1]["loss"] == 2.0
    assert logged[-1]["grad_norm"] == 2.0
    assert logged[-1]["skipped_steps"] == 2


def test_bad_losses_in_a_row_end_the_run_with_a_cause() -> None:
    tools = LoopTools(health=Health(limit=3))

    with pytest.raises(DivergedError, match="not a number for 3 steps in a row") as caught:
        run(Diary(), micro=lambda step: (torch.tensor(math.nan), {}), tools=tools)

    assert caught.value.where == "steps 1 to 3"
    assert caught.value.exit_code == 65


@pytest.mark.parametrize(
    ("steps", "bad", "where"),
    [
        (4, (0, 1, 2, 3), "steps 1 to 4"),  # all of them
        (2, (0, 1), "steps 1 to 2"),
        (6, (3, 4, 5), "steps 4 to 6"),
    ],
)
def test_a_run_whose_last_steps_were_lost_is_not_finished(
    steps: int, bad: tuple[int, ...], where: str
) -> None:
    diary = Diary()

    def micro(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.tensor(math.nan if step in bad else 1.0), {}

    with pytest.raises(DivergedError, match="not finished: its last") as caught:
        run(diary, replace(PLAN, steps=steps), micro)

    assert (caught.value.exit_code, caught.value.where) == (65, where)
    assert all(word in caught.value.fix for word in ("lr", "fp16", "NaN"))
    assert diary.kinds("save") == []
    assert len(diary.records) == steps


def test_skipped_gradients_count_as_lost_although_the_loss_is_finite() -> None:
    class Overflowing(Diary):
        def step(self, lr: float) -> StepReport:
            return StepReport(grad_norm=math.inf, skipped=True)

    with pytest.raises(DivergedError, match="its last 6 steps"):
        run(Overflowing())


def test_lost_steps_are_counted_across_starts_and_one_at_the_end_is_no_failure() -> None:
    def micro(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.tensor(math.nan if step == 5 else 1.0), {}

    assert run(Diary(), micro=micro).bad_in_a_row == 1
    with pytest.raises(DivergedError, match="its last 3 steps"):
        run(Diary(), micro=micro, state=LoopState(step=5, bad_in_a_row=2))


def test_log_lines_come_at_the_first_step_at_the_interval_and_at_the_end() -> None:
    logged: list[tuple[int, Mapping[str, float]]] = []
    hooks = LoopHooks(
        micro_step=lambda step: torch.tensor(1.0),
        on_log=lambda state, facts: logged.append((state.step, facts)),
    )

    run_loop(Diary(), replace(PLAN, log_interval=4), hooks, LoopTools(), LoopState())

    assert [step for step, _ in logged] == [1, 4, 6]
    facts = logged[1][1]
    wanted = {"loss", "lr", "grad_norm", "samples_per_s", "backward_s", "optimizer_s", "eta_s"}
    assert wanted <= set(facts)
    assert (facts["steps_done"], facts["steps"]) == (4, 6)


def test_the_step_of_log_lines_moves_with_the_run() -> None:
    tools, seen = LoopTools(), []

    def micro(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        seen.append(tools.context.step)
        return torch.tensor(1.0), {}

    run(Diary(), micro=micro, tools=tools)

    assert seen == [None, 1, 2, 3, 4, 5]


def test_the_process_group_is_the_one_of_the_test(groups: ProcessGroups) -> None:
    assert groups.rank.world_size == 1


class Flat(Diary):
    """Gradients of exactly 0 from a step on."""

    zero_steps: range = range(6)

    def step(self, lr: float) -> StepReport:
        done = len(self.kinds("step"))
        self.events.append(f"step {lr:g}")
        return StepReport(grad_norm=0.0 if done in self.zero_steps else 1.0, skipped=False)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]


def test_gradients_of_exactly_0_from_the_start_are_one_warning_with_the_likely_cause(
    caplog: pytest.LogCaptureFixture,
) -> None:
    run(Flat())

    assert warnings(caplog) == ["the gradients are exactly 0, so nothing is trained"]
    assert "LoRA on weights that were never trained" in caplog.records[-1].__dict__["likely"]


def test_one_gradient_is_enough(caplog: pytest.LogCaptureFixture) -> None:
    diary = Flat()
    diary.zero_steps = range(1, 6)

    run(diary)

    assert warnings(caplog) == []


@pytest.mark.parametrize(("losses", "said"), [([0.5] * 6, 1), ([0.5, 0.5, 0.4, 0.4, 0.4, 0.4], 0)])
def test_a_validation_loss_that_never_changes_is_one_warning(
    losses: list[float], said: int, caplog: pytest.LogCaptureFixture
) -> None:
    found = iter(losses)
    hooks = LoopHooks(
        micro_step=lambda step: torch.tensor(1.0),
        evaluate=lambda state: {"valid_loss": next(found)},
    )

    run_loop(Diary(), replace(PLAN, eval_interval=1), hooks, LoopTools(), LoopState())

    expected = "the validation loss does not change, so nothing is trained"
    assert warnings(caplog) == [expected] * said


def test_ranks_that_do_not_warn_are_silent(caplog: pytest.LogCaptureFixture) -> None:
    run(Flat(), tools=LoopTools(health=Health(warns=False)))

    assert warnings(caplog) == []
