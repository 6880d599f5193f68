"""Stop a run that learns nothing any more, and warn of one that learns nothing from the start."""

from __future__ import annotations

import logging
import math

from app.errors import DataError

log = logging.getLogger(__name__)

MAX_BAD_STEPS = 20  # in a row
# In a row at the end of a run. One or two may be fp16 searching for its loss scale.
MAX_BAD_AT_END = 3
STILL_STEPS = 5
STILL_VALIDATIONS = 3
LIKELY_STILL = (
    "LoRA on weights that were never trained (is `load` given?), every parameter frozen, or lr 0"
)
FIX = (
    "start from an earlier checkpoint (--resume-from STEP) with a lower lr, or with "
    "gradient_clipping; fp16 only suits the 2B model, use bf16; if it begins at step 1, check "
    "the weights and the data for NaN"
)


class DivergedError(DataError):
    """The loss or the gradients stay NaN or infinite; a restart would end in the same way."""


def is_lost(loss: float, grad_norm: float, *, skipped: bool) -> bool:
    """Whether a step changed nothing, or nothing that makes sense."""
    return skipped or not math.isfinite(loss) or not math.isfinite(grad_norm)


def check_end(step: int, bad_in_a_row: int) -> None:
    """Refuse an end at which the run had stopped learning.

    Args:
        step: optimizer steps done.
        bad_in_a_row: how many of the last ones were lost.

    Raises:
        DivergedError: they are too many, or all steps of the run.
    """
    if bad_in_a_row >= min(MAX_BAD_AT_END, step) > 0:
        raise DivergedError(
            f"the run is not finished: its last {bad_in_a_row} steps had no finite loss or "
            "gradients, and changed no weights",
            where=f"steps {step - bad_in_a_row + 1} to {step}",
            fix=FIX,
        )


class Health:
    """Counts consecutive steps with a loss that is not finite, and looks whether anything changes.

    Args:
        limit: so many bad losses in a row end the run.
        warns: whether this process says what it sees; one rank is enough.
    """

    def __init__(self, limit: int = MAX_BAD_STEPS, *, warns: bool = True) -> None:
        self._limit = limit
        self._in_a_row = 0
        self._warns = warns
        self._still_steps: int | None = 0  # None: a gradient was seen, or the warning given
        self._losses: list[float] = []  # of the first validations

    def observe(self, step: int, loss: float, *, skipped: bool) -> None:
        """Count one step.

        Raises:
            DivergedError: too many consecutive steps had a loss that is not finite.
        """
        if math.isfinite(loss):
            # A skipped step with a finite loss: fp16 is searching for its loss scale.
            self._in_a_row = 0
            return
        self._in_a_row += 1
        log.warning(
            "the loss is not a number",
            extra={"loss": loss, "step_skipped": skipped, "in_a_row": self._in_a_row},
        )
        if self._in_a_row >= self._limit:
            raise DivergedError(
                f"the loss was not a number for {self._in_a_row} steps in a row",
                where=f"steps {step - self._in_a_row + 1} to {step}",
                fix=FIX,
            )

    def observe_gradient(self, step: int, grad_norm: float) -> None:
        """Warn once when the first steps all have no gradient at all."""
        if self._still_steps is None:
            return
        self._still_steps = self._still_steps + 1 if grad_norm == 0 else None
        if self._still_steps == STILL_STEPS:
            self._still_steps = None
            self._warn("the gradients are exactly 0, so nothing is trained", step)

    def observe_validation(self, step: int, loss: float) -> None:
        """Warn once when the first validations all have the same loss."""
        if len(self._losses) >= STILL_VALIDATIONS:
            return
        self._losses.append(loss)
        if len(self._losses) == STILL_VALIDATIONS and len(set(self._losses)) == 1:
            self._warn("the validation loss does not change, so nothing is trained", step)

    def _warn(self, what: str, step: int) -> None:
        if self._warns:
            log.warning(what, extra={"steps_done": step, "likely": LIKELY_STILL})
