"""The training loop: micro-steps, optimizer step, log, save, validate, stop.

Data, storage and evaluation are callables. A `step` is an optimizer step; metrics are logged with
the count of steps done, 1 after the first, as upstream's iterations.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from app.telemetry.logging import LogContext
from app.telemetry.metrics import Trackers
from app.telemetry.timing import Pace, PartTimes
from app.training.engine import StepReport
from app.training.health import Health, check_end, is_lost
from app.training.lr_schedule import LrSchedule
from app.training.reduction import reduced
from app.training.signals import StopFlag

log = logging.getLogger(__name__)

PART_NAMES = {"data loader": "data"}  # upstream's timer name -> ours in log lines

MicroStep = Callable[[int], tuple[Tensor, Mapping[str, Tensor]] | Tensor]


class SteppedEngine(Protocol):
    """What the loop needs of app.training.engine.Engine."""

    def train(self) -> None: ...
    def backward(self, loss: Tensor) -> None: ...
    def step(self, lr: float) -> StepReport: ...


@dataclass(frozen=True, slots=True)
class LoopState:
    """How far the run is: part of every checkpoint."""

    step: int = 0  # optimizer steps done
    skipped_steps: int = 0
    bad_in_a_row: int = 0  # last steps without a finite loss or gradients
    stopped_early: bool = False  # by exit_interval: the run is not finished


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopPlan:
    """Lengths and intervals in optimizer steps; None or 0 means never."""

    steps: int
    accumulation: int
    samples_per_step: int  # of all ranks
    schedule: LrSchedule
    log_interval: int = 50
    save_interval: int | None = None
    eval_interval: int | None = None
    exit_interval: int | None = None


def _nothing(*_: object) -> None:
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopHooks:
    """What the loop calls.

    Attributes:
        micro_step: the step's number -> loss and metrics by name (`forward_step`).
        save: writes a checkpoint of the state; called by every rank.
        evaluate: validates and returns metrics by name; called by every rank.
        before_step: called with the step's number before its first micro-step.
        on_log: called with (state, metrics) at each log line, on every rank.
        has_news: whether this rank has something for the others after a step.
        on_news: called with the state after a step when any rank had news, on every rank.
        metrics: more metrics by name for log lines and records.
    """

    micro_step: MicroStep
    save: Callable[[LoopState], None] = _nothing
    evaluate: Callable[[LoopState], Mapping[str, float] | None] = _nothing
    before_step: Callable[[int], None] = _nothing
    on_log: Callable[[LoopState, Mapping[str, float]], None] = _nothing
    has_news: Callable[[], bool] = bool
    on_news: Callable[[LoopState], None] = _nothing
    metrics: Callable[[], Mapping[str, float]] = dict


@dataclass(slots=True)
class LoopTools:
    """Clocks, trackers, log context and the stop flag of this process."""

    times: PartTimes = field(default_factory=PartTimes)
    trackers: Trackers = field(default_factory=Trackers)  # empty on all ranks but 0
    stop: StopFlag = field(default_factory=StopFlag)
    health: Health = field(default_factory=Health)
    context: LogContext = field(default_factory=lambda: LogContext(rank=0))


def run_loop(
    engine: SteppedEngine,
    plan: LoopPlan,
    hooks: LoopHooks,
    tools: LoopTools,
    state: LoopState,
) -> LoopState:
    """Train from `state.step` to `plan.steps`.

    Returns:
        The last state; it has been saved.

    Raises:
        PreemptedError: a rank got SIGTERM; the state was saved first.
        InterruptedRunError: the same, at SIGINT.
        DivergedError: the loss was not a number for too many steps in a row, or the last steps
            changed no weights.
    """
    tools.stop.in_loop = True
    try:
        return _steps(engine, plan, hooks, tools, state)
    finally:
        tools.stop.in_loop = False


def _steps(
    engine: SteppedEngine,
    plan: LoopPlan,
    hooks: LoopHooks,
    tools: LoopTools,
    state: LoopState,
) -> LoopState:
    recorder = _Recorder(plan, hooks, tools)
    while state.step < plan.steps:
        engine.train()
        record = train_step(engine, plan, hooks, tools, state)
        wants_stop, has_news = record.pop("stop") > 0, record.pop("news") > 0
        state = replace(
            state,
            step=state.step + 1,
            skipped_steps=state.skipped_steps + int(record["skipped"]),
            bad_in_a_row=state.bad_in_a_row + 1 if _is_lost(record) else 0,
        )
        tools.context.step = state.step
        if has_news:
            hooks.on_news(state)
        is_last = state.step == plan.steps
        recorder.record(state, record)
        if is_last:
            recorder.flush()
            check_end(state.step, state.bad_in_a_row)
        is_exit = not is_last and is_due(state.step, plan.exit_interval)
        is_stop = not is_last and wants_stop
        if is_stop:
            log.info("stopping: saving first", extra={"steps_done": state.step})
        if is_last or is_exit or is_stop or is_due(state.step, plan.save_interval):
            recorder.save(state)
        if is_stop:
            raise tools.stop.error(state.step, plan.steps)
        if is_due(state.step, plan.eval_interval):
            recorder.evaluate(state)
        if is_exit:
            log.info("stopping at exit_interval", extra={"steps_done": state.step})
            return replace(state, stopped_early=True)
    return state


def train_step(
    engine: SteppedEngine,
    plan: LoopPlan,
    hooks: LoopHooks,
    tools: LoopTools,
    state: LoopState,
) -> dict[str, float]:
    """One optimizer step.

    Returns:
        Means over ranks and micro-steps of `loss` and of the micro-step's other metrics; `lr`,
        `grad_norm`, `skipped` (0 or 1), `stop` (above 0: a rank requests the end), `news` (above
        0: a rank has some).
    """
    hooks.before_step(state.step)
    sums: dict[str, Any] = {}
    for _ in range(plan.accumulation):
        answer = hooks.micro_step(state.step)
        loss, metrics = answer if isinstance(answer, tuple) else (answer, {})
        with tools.times.part("backward"):
            engine.backward(loss)
        for name, value in {**metrics, "loss": loss}.items():
            sums.setdefault(name, []).append(torch.as_tensor(value).detach())
    lr = plan.schedule.lr(state.step, state.skipped_steps)
    with tools.times.part("optimizer"):
        report = engine.step(lr)
    means = reduced(sums, stop=tools.stop.requested, news=hooks.has_news())
    return {
        **means,
        "lr": lr,
        "grad_norm": report.grad_norm,
        "skipped": float(report.skipped),
    }


class _Recorder:
    """What happens between the steps: records, log lines, saves, validation, and their times."""

    def __init__(self, plan: LoopPlan, hooks: LoopHooks, tools: LoopTools) -> None:
        self._plan = plan
        self._hooks = hooks
        self._tools = tools
        self._pace = Pace(plan.samples_per_step)
        self._window: list[Mapping[str, float]] = []  # records since the last log line
        self._is_first = True

    def record(self, state: LoopState, record: dict[str, float]) -> None:
        """Record one step; log when it is time."""
        self._pace.step()
        self._window.append(record)
        skipped = bool(record["skipped"])
        is_first, is_last = self._is_first, state.step == self._plan.steps
        self._is_first = False  # of this start: logged, so that progress shows early
        if is_first or is_last or is_due(state.step, self._plan.log_interval):
            record = record | self._log(state, record["lr"])
        self._tools.trackers.log(state.step, {**record, **self._hooks.metrics()})
        self._tools.health.observe(state.step, record["loss"], skipped=skipped)
        self._tools.health.observe_gradient(state.step, record["grad_norm"])

    def flush(self) -> None:
        """Hand over every record."""
        self._tools.trackers.flush()

    def save(self, state: LoopState) -> None:
        """Write a checkpoint; the metrics before it are flushed first."""
        self._tools.trackers.flush()
        with self._aside("save"):
            self._hooks.save(state)

    def evaluate(self, state: LoopState) -> None:
        """Validate and record the metrics."""
        with self._aside("evaluate"):
            metrics = self._hooks.evaluate(state)
        if metrics:
            self._tools.health.observe_validation(state.step, metrics.get("valid_loss", math.nan))
            self._tools.trackers.log(state.step, metrics)
            self._tools.trackers.flush()

    def _log(self, state: LoopState, lr: float) -> dict[str, float]:
        """One log line; returns the metrics that also belong to the step's record."""
        count = len(self._window)
        timing = {"samples_per_s": self._pace.take()}
        for name, seconds in self._tools.times.take().items():
            timing[f"{PART_NAMES.get(name, name)}_s"] = seconds / count
        eta_s = self._pace.eta_s(self._plan.steps - state.step)
        if eta_s is not None:
            timing["eta_s"] = eta_s
        metrics = {
            "steps_done": state.step,
            "steps": self._plan.steps,
            # Of the finite ones: a NaN would hide all others of the window.
            "loss": _mean([record["loss"] for record in self._window]),
            "lr": lr,
            "grad_norm": _mean([record["grad_norm"] for record in self._window]),
            **timing,
            "skipped_steps": state.skipped_steps,
            **self._hooks.metrics(),
        }
        self._window.clear()
        log.info("training", extra=metrics)
        self._hooks.on_log(state, metrics)
        self._tools.trackers.flush()
        return timing

    @contextmanager
    def _aside(self, name: str) -> Iterator[None]:
        """Work that is not training: timed apart, and not part of the speed."""
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self._tools.times.add(name, seconds)
        self._pace.aside(seconds)


def is_due(step: int, interval: int | None) -> bool:
    """Whether something with this interval in steps is due after `step` steps."""
    return bool(interval) and step % int(interval or 1) == 0


def _is_lost(record: Mapping[str, float]) -> bool:
    return is_lost(record["loss"], record["grad_norm"], skipped=bool(record["skipped"]))


def _mean(values: list[float]) -> float:
    """Of the finite ones; NaN without any."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan
