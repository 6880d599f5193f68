"""The numbers of a run, step by step, to the trackers that show them.

A tracker takes numbers by name. Trackers run on rank 0 only. Names for TensorBoard and W&B are
upstream's: `Train/lr`, `Train/train_loss`, `Train/valid_loss`, `Train/<metric>`.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from app.errors import RetryableError
from app.telemetry.timing import clock_text

log = logging.getLogger(__name__)

Write = Callable[[str, bytes], None]  # key below the run's folder, content
PREFIX = "Train/"
UPSTREAM_NAMES = {"loss": "train_loss"}


class Tracker(Protocol):
    """Implemented by the classes below and by WandbTracker."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of one step. Steps never go back within one start of the run."""
        ...

    def flush(self) -> None:
        """Write what is buffered; called before each checkpoint and at log lines."""
        ...

    def close(self) -> None:
        """The run ends."""
        ...


def tracker_name(name: str) -> str:
    """The name under which TensorBoard and W&B show a number."""
    return PREFIX + UPSTREAM_NAMES.get(name, name)


class JsonlTracker:
    """Exact numbers as JSON lines, in numbered parts: objects in a bucket cannot be appended to.

    A float is written with enough digits to read the same float back; NaN and infinity, which JSON
    cannot represent, become null.
    """

    def __init__(self, write: Write, attempt: int) -> None:
        self._write = write
        self._attempt = attempt
        self._part = 0
        self._lines: list[str] = []

    def log(self, step: int, values: Mapping[str, float]) -> None:
        kept = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._lines.append(json.dumps({"step": step, **kept}))

    def flush(self) -> None:
        if not self._lines:
            return
        key = f"metrics/{self._attempt:06d}-{self._part:06d}.jsonl"
        try:
            self._write(key, ("\n".join(self._lines) + "\n").encode())
        except RetryableError as problem:
            # The lines are kept for the next part: this record must have no gap.
            log.warning("metrics are waiting for the storage", extra={"problem": problem.what})
            return
        self._part += 1
        self._lines.clear()

    def close(self) -> None:
        self.flush()


class TensorBoardTracker:
    """Event files below `<summary_dir>/runs/<run id>`."""

    def __init__(self, folder: Path, *, purge_step: int) -> None:
        # Imported here: a run without a summary folder needs no TensorBoard.
        from torch.utils.tensorboard import SummaryWriter

        # Steps after a resume replace those that the killed run had written.
        self._writer: Any = SummaryWriter(str(folder), purge_step=purge_step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(tracker_name(name), value, step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class ProgressTracker:
    """One line for a terminal: step, loss, speed, time left."""

    def __init__(self, show: Callable[[str], None], total_steps: int) -> None:
        self._show = show
        self._total = total_steps
        self._speed = ""  # measured at log lines only, shown until the next

    def log(self, step: int, values: Mapping[str, float]) -> None:
        loss = values.get("loss", math.nan)
        if math.isnan(loss):
            return  # numbers of a validation
        if "samples_per_s" in values:
            self._speed = f"  {values['samples_per_s']:.2f} samples/s"
            if "eta_s" in values:
                self._speed += f"  {clock_text(values['eta_s'])} left"
        bad = f"  {values['bad_samples']:.0f} bad samples" if values.get("bad_samples") else ""
        self._show(f"step {step}/{self._total}  loss {loss:.4f}{self._speed}{bad}")

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


class Trackers:
    """Several trackers as one; one that fails is dropped with a warning, and the run continues."""

    def __init__(self, trackers: Sequence[Tracker] = ()) -> None:
        self._trackers = list(trackers)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._each("log", lambda tracker: tracker.log(step, values))

    def flush(self) -> None:
        self._each("flush", lambda tracker: tracker.flush())

    def close(self) -> None:
        self._each("close", lambda tracker: tracker.close())

    def _each(self, what: str, call: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                call(tracker)
            except Exception as problem:  # whatever a library raises: training is worth more
                self._trackers.remove(tracker)
                facts = {"tracker": type(tracker).__name__, "call": what, "problem": repr(problem)}
                log.warning("a tracker failed and is disabled", extra=facts, exc_info=True)
