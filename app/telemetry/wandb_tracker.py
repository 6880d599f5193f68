"""Weights & Biases. The only module that imports wandb."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.telemetry.metrics import tracker_name


@dataclass(frozen=True, slots=True)
class WandbRun:
    """Project, name and local folder of a W&B run."""

    project: str
    name: str
    folder: Path  # local files of wandb, also in offline mode
    resume_id: str | None = None  # continue this run of an earlier start


class WandbTracker:
    """One W&B run. `WANDB_MODE=offline` writes files and needs no account."""

    def __init__(self, run: WandbRun, config: Mapping[str, object]) -> None:
        import wandb

        self._is_continued = run.resume_id is not None
        run.folder.mkdir(parents=True, exist_ok=True)
        # Without a key the login would prompt for one.
        has_key = "WANDB_API_KEY" in os.environ or Path("~/.netrc").expanduser().exists()
        self._run: Any = wandb.init(
            project=run.project,
            name=run.name,
            dir=str(run.folder),
            config=dict(config),
            id=run.resume_id,
            resume="allow" if run.resume_id else None,
            mode=None if has_key or "WANDB_MODE" in os.environ else "offline",
        )

    @property
    def run_id(self) -> str:
        """Saved in checkpoints, so that a resumed run continues the same W&B run."""
        return str(self._run.id)

    @property
    def lacks_from(self) -> int | None:
        """The first step that a continued run does not have yet; None: not continued, or offline.

        A killed process may not have sent its last steps; earlier ones W&B does not take again.
        """
        if not self._is_continued or self._run.offline:
            return None
        return int(self._run.starting_step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({tracker_name(name): value for name, value in values.items()}, step=step)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self._run.finish()
