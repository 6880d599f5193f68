"""Facts about a finished run, read from its folder."""

from __future__ import annotations

import json
from dataclasses import dataclass

from app.checkpoint.attempts import read_attempts
from app.checkpoint.layout import COMPLETE, METRICS, SAMPLES
from app.storage.objects import Storage


@dataclass(frozen=True, slots=True)
class RunRecord:
    """Facts of a run.

    Attributes:
        loss_start: fixed-noise validation loss before the first step.
        loss_end: the same at the end.
        samples_per_s: the median of the log lines.
        attempts: per start, the checkpoint that it resumed from.
        videos: keys of the sample videos, by step.
        is_complete: complete.json is there.
    """

    loss_start: float
    loss_end: float
    samples_per_s: float
    attempts: tuple[str | None, ...]
    videos: tuple[str, ...]
    is_complete: bool


def read_metrics(storage: Storage) -> list[dict[str, float]]:
    """Every record of every part, in the order of attempts and parts."""
    lines = []
    for entry in storage.list(METRICS):
        lines += storage.read_small(entry.key).decode().splitlines()
    return [json.loads(line) for line in lines]


def read_run(storage: Storage) -> RunRecord:
    """Read the folder of a run. Without validation, its losses are NaN."""
    records = read_metrics(storage)
    losses = {int(r["step"]): r["valid_loss"] for r in records if "valid_loss" in r}
    speeds = sorted(r["samples_per_s"] for r in records if r.get("samples_per_s"))
    keys = [entry.key for entry in storage.list()]
    return RunRecord(
        loss_start=losses.get(0, float("nan")),
        loss_end=losses[max(losses)] if losses else float("nan"),
        samples_per_s=speeds[len(speeds) // 2] if speeds else 0.0,
        attempts=tuple(attempt.resumed_from for attempt in read_attempts(storage)),
        videos=tuple(k for k in keys if k.startswith(SAMPLES) and k.endswith(".mp4")),
        is_complete=COMPLETE in keys,
    )
