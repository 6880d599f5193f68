"""A small training configuration for tests."""

from __future__ import annotations

from app.config.schema.training import (
    EvaluationConfig,
    LrScheduleConfig,
    OptimizerConfig,
    TrainingConfig,
)


def training_config(
    *,
    steps: int = 6,
    lr: float = 1e-2,
    precision: str = "fp32",
    zero_stage: int = 2,
    accumulation: int = 1,
    clipping: float = 1.0,
    kind: str = "adamw",
    ema_decay: float | None = None,
) -> TrainingConfig:
    return TrainingConfig(
        steps=steps,
        epochs=None,
        micro_batch=2,
        accumulation=accumulation,
        seed=7,
        mode="pretrain",
        precision=precision,
        zero_stage=zero_stage,
        gradient_clipping=clipping,
        optimizer=OptimizerConfig(
            kind=kind,
            lr=lr,
            betas=(0.9, 0.95),
            weight_decay=1e-2,
            ema_decay=ema_decay,
        ),
        lr_schedule=LrScheduleConfig(curve="default"),
        evaluation=EvaluationConfig(batch_size=1),
    )
