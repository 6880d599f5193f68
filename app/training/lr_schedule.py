"""The learning rate as a pure function of the optimizer step: nothing to save, nothing to load.

Two curves. `default`: a linear rise to the base rate, then the decay style down to its end at the
end of the run. `sat`: upstream's AnnealingLR, number for number: 100 steps at 5% of the rate when
mode is finetune, and a decay that does not reach its end (docs/upstream_differences.md).

Source of `sat`: SwissArmyTransformer 0.4.12, sat/training/learning_rates.py, AnnealingLR.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from app.config.schema.training import LrScheduleConfig, TrainingConfig
from app.errors import ConfigError

AUTO_WARMUP_STEPS = 100  # sat: steps at a small rate after every start but a fresh pretraining
AUTO_WARMUP_RATE = 0.05  # sat: that small rate, as a fraction of the base rate
STYLES = ("constant", "linear", "cosine", "exponential")


@dataclass(frozen=True, kw_only=True, slots=True)
class LrSchedule:
    """The curve of one run. `steps` is where the decay ends, `warmup` counts steps."""

    base: float
    style: str
    curve: str
    steps: int
    warmup: float
    decay_ratio: float
    auto_warmup: bool  # sat only
    start_step: int = 0  # sat only: step of the loaded weights when upstream would resume

    @classmethod
    def from_config(cls, training: TrainingConfig, *, start_step: int = 0) -> LrSchedule:
        """The curve of a configuration.

        Args:
            start_step: the `sat` curve shifts when upstream loads an iteration (mode pretrain).
                Our own resume does not: it continues the curve, so leave it 0.

        Raises:
            ConfigError: the style is unknown, or the warm-up is longer than the run.
        """
        config = training.lr_schedule
        style = "constant" if config.style in ("None", None) else config.style
        steps = max(1, config.decay_steps or training.steps)
        _check(config, style)
        return cls(
            base=training.optimizer.lr,
            style=style,
            curve=config.curve,
            steps=steps,
            # A whole number in the default curve; upstream's stays a float.
            warmup=config.warmup * steps if config.curve == "sat" else round(config.warmup * steps),
            decay_ratio=config.decay_ratio,
            auto_warmup=training.mode != "pretrain" or start_step > 0,
            start_step=start_step,
        )

    def lr(self, step: int, skipped: int = 0) -> float:
        """The rate of optimizer step `step` (0 is the first).

        Args:
            skipped: steps skipped so far (NaN). Upstream's curve does not advance at those; the
                default curve ignores them.
        """
        if self.curve == "sat":
            return self._sat(max(0, step - skipped))
        return self._default(step)

    def _default(self, step: int) -> float:
        if step < self.warmup:
            return self.base * (step + 1) / self.warmup
        # 0 at the end of the warm-up, 1 when the run is over, so the last step still trains.
        progress = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        if self.style == "linear":
            return self.base * (1 - progress)
        if self.style == "cosine":
            fall = (1 + math.cos(math.pi * progress)) / 2
            return self.base * (self.decay_ratio + (1 - self.decay_ratio) * fall)
        if self.style == "exponential":
            return self.base * float(self.decay_ratio**progress)
        return self.base

    def _sat(self, successes: int) -> float:
        before = max(self.start_step - AUTO_WARMUP_STEPS, 0)
        count = before + 1 + successes  # upstream's counter when this step is taken
        auto = AUTO_WARMUP_STEPS if self.auto_warmup else 0
        warmup, steps = self.warmup, self.steps
        if auto and count <= before + auto:
            slow = AUTO_WARMUP_RATE * self.base
            # Upstream divides by zero here when warmup is 0; the plateau is what it intends.
            return min(slow, self.base * count / warmup) if warmup > 0 else slow
        if warmup > 0 and count <= warmup:
            return self.base * count / warmup
        if self.style == "linear":
            # Ends at base * warmup / steps, and below zero past steps + warmup: kept.
            return self.base * (steps - (count - warmup)) / steps
        if self.style == "cosine":
            progress = min(1.0, (count - warmup) / steps)
            rise = 1 / self.decay_ratio - 1
            fall = (math.cos(math.pi * progress) + 1) * rise / 2 + 1
            return self.base * self.decay_ratio * fall
        return self.base


def _check(config: LrScheduleConfig, style: str) -> None:
    if style not in STYLES:
        raise ConfigError(
            f"the learning-rate style {config.style!r} does not exist",
            where="args.lr_decay_style",
            fix=f"use one of {', '.join(STYLES)}",
        )
    if not 0 <= config.warmup <= 1:
        raise ConfigError(
            f"the warm-up is {config.warmup} of the decay",
            where="args.warmup",
            fix="give a fraction between 0 and 1 of lr_decay_iters (or train_iters)",
        )
    if style in ("cosine", "exponential") and not 0 < config.decay_ratio <= 1:
        raise ConfigError(
            f"the last learning rate is {config.decay_ratio} of the first",
            where="args.lr_decay_ratio",
            fix="give a fraction above 0 and at most 1",
        )
