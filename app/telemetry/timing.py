"""Where the time of a step goes, and how fast the run is.

On a GPU, parts that compute there are measured by events on its stream: the host runs ahead, so its
clock would charge all waiting to whichever part waits first.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

DEVICE_PARTS = frozenset({"encode", "forward", "backward", "optimizer"})


class PartTimes:
    """Seconds per named part since the last `take`.

    `with times.part("forward")` here; `times("forward").start()` and `.stop()`, like upstream's
    timers, for a user's own step function.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._on_gpu = device is not None and device.type == "cuda"
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, Any, Any]] = []
        self._watches: dict[str, Stopwatch] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Charge the time of the block to `name`."""
        if not (self._on_gpu and name in DEVICE_PARTS):
            start = time.perf_counter()
            try:
                yield
            finally:
                self.add(name, time.perf_counter() - start)
            return
        first = torch.cuda.Event(enable_timing=True)
        last = torch.cuda.Event(enable_timing=True)
        first.record()
        try:
            yield
        finally:
            last.record()
            self._events.append((name, first, last))

    def __call__(self, name: str) -> Stopwatch:
        return self._watches.setdefault(name, Stopwatch(self, name))

    def add(self, name: str, seconds: float) -> None:
        """Charge `seconds` to `name`."""
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def take(self) -> dict[str, float]:
        """Seconds per part since the last call; on a GPU waits for the measured work to end."""
        for name, first, last in self._events:
            last.synchronize()
            self.add(name, first.elapsed_time(last) / 1000)
        self._events.clear()
        taken, self._seconds = self._seconds, {}
        return taken


class Stopwatch:
    """One part of `PartTimes`, started and stopped explicitly."""

    def __init__(self, times: PartTimes, name: str) -> None:
        self._times = times
        self._name = name
        self._block: Any = None

    def start(self) -> None:
        self._block = self._times.part(self._name)
        self._block.__enter__()

    def stop(self) -> None:
        assert self._block is not None, f"timer {self._name!r} stopped before it was started"
        self._block.__exit__(None, None, None)
        self._block = None


class Pace:
    """Speed over the last steps, without what is not training (saves, validation)."""

    def __init__(self, samples_per_step: int) -> None:
        self._samples_per_step = samples_per_step
        self._start = time.perf_counter()
        self._steps = 0
        self._aside_s = 0.0
        self._step_s: float | None = None

    def step(self) -> None:
        """One step is done."""
        self._steps += 1

    def aside(self, seconds: float) -> None:
        """Exclude time that was spent on something else."""
        self._aside_s += seconds

    def take(self) -> float:
        """Samples per second since the last call; NaN without a step."""
        now = time.perf_counter()
        seconds = max(1e-9, now - self._start - self._aside_s)
        steps, self._steps, self._start, self._aside_s = self._steps, 0, now, 0.0
        if not steps:
            return float("nan")
        self._step_s = seconds / steps
        return steps * self._samples_per_step / seconds

    def eta_s(self, steps_left: int) -> float | None:
        """Seconds to the end at the last measured speed; None before the first measurement."""
        return None if self._step_s is None else self._step_s * steps_left


def clock_text(seconds: float) -> str:
    """As `1:02:03`."""
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{left:02d}"
