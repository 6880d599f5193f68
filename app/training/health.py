"""Stop a run whose loss is NaN or infinite for too many steps."""

from __future__ import annotations

import logging
import math

from app.errors import CogvxError

log = logging.getLogger(__name__)

MAX_BAD_STEPS = 20  # in a row


class DivergedError(CogvxError):
    """The loss stays NaN or infinite; a restart would end in the same way."""

    exit_code = 1


class Health:
    """Counts consecutive steps with a loss that is not finite."""

    def __init__(self, limit: int = MAX_BAD_STEPS) -> None:
        self._limit = limit
        self._in_a_row = 0

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
                fix="start from an earlier checkpoint with a lower lr, or with "
                "gradient_clipping; if it begins at step 1, check the weights and the data",
            )
