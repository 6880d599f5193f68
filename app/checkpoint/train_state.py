"""What a run needs besides tensors to resume exactly. JSON only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from app.checkpoint.json_file import (
    broken,
    canonical_json,
    check_format,
    parse_object,
    take_fields,
)

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainState:
    """The counters after `step` optimizer steps."""

    step: int
    micro_step: int = 0  # micro-batches taken; always at the end of an accumulation
    adam_step: Mapping[str, int] = field(default_factory=dict)  # Adam's own count by group
    cursor: Mapping[str, Any] = field(default_factory=dict)  # position in the data
    seed: int = 0
    skipped_steps: int = 0  # gradients were not finite
    bad_in_a_row: int = 0  # last steps without a finite loss or gradients
    loss_scale: Mapping[str, float] | None = None  # fp16: cur_scale, cur_iter, last_overflow_iter
    ema_step: int | None = None  # updates of the averages; None: no averages
    best: Mapping[str, Any] = field(default_factory=dict)  # best validation loss and its step
    wandb_run_id: str | None = None
    config_sha256: str = ""
    layout: Mapping[str, int] = field(default_factory=dict)  # world size, stage, batch, ...
    versions: Mapping[str, str] = field(default_factory=dict)  # of this program and its libraries

    def to_json(self) -> bytes:
        """The content of state.json."""
        return canonical_json({"format_version": FORMAT_VERSION, **asdict(self)})

    @classmethod
    def from_json(cls, data: bytes, where: str) -> TrainState:
        """Parse state.json.

        Raises:
            CheckpointError: damaged, or of another format.
        """
        value = parse_object(data, where)
        check_format(value, FORMAT_VERSION, where)
        found = take_fields(cls, {"bad_in_a_row": 0, **value}, where)  # new since 0.1
        if found["step"] < 0 or found["micro_step"] < 0:
            raise broken("its step is negative", where)
        return cls(**found)
