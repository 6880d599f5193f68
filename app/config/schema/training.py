"""Optimizer, precision, schedule, intervals: everything that drives the loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from app.config.argument import (
    CHECKPOINTS,
    LOGGING,
    OPTIMIZER,
    PROCESSES,
    RUN,
    VALIDATION,
    argument,
)
from app.config.kinds import boolean, choice, integer, optional, real, text


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """`deepspeed.optimizer`, with lr and weight decay from their one home in `args`."""

    kind: str  # "adamw", "adam", "ema_adamw" (sat.ops.FusedEmaAdam)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    ema_decay: float | None = None  # 0.9999 with FusedEmaAdam; None: no EMA
    lr: float = argument(
        real(0),
        1e-4,
        "learning rate; the same number as deepspeed.optimizer.params.lr",
        group=OPTIMIZER,
    )
    weight_decay: float = argument(
        real(0),
        0.01,
        "weight decay; the same number as deepspeed.optimizer.params.weight_decay",
        group=OPTIMIZER,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class LrScheduleConfig:
    """The learning rate as a pure function of the step (spec of upstream's AnnealingLR)."""

    style: str = argument(
        choice("constant", "linear", "cosine", "exponential"),
        "linear",
        "shape of the learning rate after warmup",
        group=OPTIMIZER,
        name="lr_decay_style",
    )
    decay_steps: int | None = argument(
        optional(integer(1)),
        None,
        "length of the decay; default: train_iters",
        group=OPTIMIZER,
        name="lr_decay_iters",
        unit="optimizer steps",
    )
    decay_ratio: float = argument(
        real(0, 1),
        0.1,
        "final learning rate of the cosine",
        group=OPTIMIZER,
        name="lr_decay_ratio",
        unit="fraction of lr",
    )
    warmup: float = argument(
        real(0, 1),
        0.01,
        "linear warmup of the learning rate",
        group=OPTIMIZER,
        unit="fraction of lr_decay_iters",
    )
    curve: str  # compat.lr_curve; "sat": 100 steps at 5% when mode is finetune, ends above zero


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """Validation: fixed-noise loss and sample videos."""

    batch_size: int  # eval_batch_size, or batch_size
    interval: int | None = argument(
        optional(integer(1)),
        None,
        "validate every n steps; null: never",
        group=VALIDATION,
        name="eval_interval",
        unit="optimizer steps",
    )
    iterations: int = argument(
        integer(0),
        100,
        "length of one validation",
        group=VALIDATION,
        name="eval_iters",
        unit="micro-batches",
    )
    strict: bool = argument(
        boolean(),
        False,
        "validate on the whole validation set",
        group=VALIDATION,
        name="strict_eval",
    )
    log_videos: bool = argument(
        boolean(), True, "sample videos at validation", group=VALIDATION, name="log_image"
    )
    only_latents: bool = argument(
        boolean(),
        False,
        "write the sampled latents and leave out their decoding",
        group=VALIDATION,
        name="only_log_video_latents",
    )
    grid_rows: int = argument(
        integer(1),
        1,
        "rows of the grid that shows several sampled videos in one",
        group=VALIDATION,
        name="grid_num_rows",
        unit="rows",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """One training run."""

    steps: int  # optimizer steps; from train_iters, or from epochs once the data is counted
    precision: str  # fp32, bf16, fp16
    gradient_clipping: float  # 0: off
    optimizer: OptimizerConfig
    lr_schedule: LrScheduleConfig
    evaluation: EvaluationConfig
    deepspeed: Mapping[str, object] = field(default_factory=dict)  # merged section, for the engine
    mode: str = argument(
        choice("pretrain", "finetune", "inference"),
        "pretrain",
        "pretrain and finetune train; finetune starts the run's step at 0",
        group=RUN,
    )
    epochs: int | None = argument(
        optional(integer(1)),
        None,
        "length of the training, instead of train_iters",
        group=RUN,
        unit="passes over the data",
    )
    seed: int = argument(
        integer(0, 2**63 - 1), 1234, "base seed of every random number of the run", group=RUN
    )
    exit_interval: int | None = argument(
        optional(integer(1)),
        None,
        "save and stop when the step is a multiple of it",
        group=RUN,
        unit="optimizer steps",
    )
    micro_batch: int = argument(
        integer(1),
        4,
        "micro-batch; the same number as deepspeed.train_micro_batch_size_per_gpu",
        group=OPTIMIZER,
        name="batch_size",
        unit="samples per process and micro-step",
    )
    accumulation: int = argument(
        integer(1),
        1,
        "micro-steps per optimizer step; the same number as in section deepspeed",
        group=OPTIMIZER,
        name="gradient_accumulation_steps",
        unit="micro-steps",
    )
    zero_stage: int = argument(
        integer(0, 3),
        0,
        "ZeRO stage; the same number as deepspeed.zero_optimization.stage",
        group=OPTIMIZER,
    )
    save: str | None = argument(
        optional(text()),
        None,
        "folder or s3:// prefix; everything of a run is in <save>/<run-id>/",
        group=CHECKPOINTS,
    )
    save_interval: int | None = argument(
        optional(integer(0)),
        5000,
        "a checkpoint every n steps; 0 or null: only at the end",
        group=CHECKPOINTS,
        unit="optimizer steps",
    )
    keep_checkpoints: int | None = argument(
        optional(integer(1)),
        None,
        "keep only the newest n checkpoints of the run; null: all",
        group=CHECKPOINTS,
        unit="checkpoints",
        ours=True,
    )
    load: str | None = argument(
        optional(text()),
        None,
        "initial weights: a file, a folder or s3://; read only while the run has no complete "
        "checkpoint",
        group=CHECKPOINTS,
    )
    restart: bool = argument(
        boolean(),
        False,
        "begin the run at step 0 again, in the same folder; what it did before no longer counts",
        group=CHECKPOINTS,
        ours=True,
    )
    resume_from: str | None = argument(
        optional(text()),
        None,
        "go on from this checkpoint of the run instead of its newest; later ones no longer count",
        group=CHECKPOINTS,
        unit="step, or name of a checkpoint",
        ours=True,
    )
    lora_from: str | None = argument(
        optional(text()),
        None,
        "initial LoRA of a new run: a run, a checkpoint of one, or an exported LoRA, local or "
        "s3://; read only while the run has no complete checkpoint",
        group=CHECKPOINTS,
        ours=True,
    )
    force_train: bool = argument(
        boolean(),
        False,
        "start although the initial weights lack keys that are not LoRA",
        group=CHECKPOINTS,
    )
    no_save_rng: bool = argument(
        boolean(), False, "leave global random states out of checkpoints", group=CHECKPOINTS
    )
    no_load_rng: bool = argument(
        boolean(), False, "do not restore global random states when resuming", group=CHECKPOINTS
    )
    resume_dataloader: bool = argument(
        boolean(),
        False,
        "under compat sat: continue in the data after a resume (always so otherwise)",
        group=CHECKPOINTS,
    )
    log_interval: int = argument(
        integer(1), 50, "a log line every n steps", group=LOGGING, unit="optimizer steps"
    )
    debug: bool = argument(boolean(), False, "log at level DEBUG", group=LOGGING)
    summary_dir: str = argument(
        text(), "", "folder of TensorBoard, W&B and save_args files", group=LOGGING
    )
    save_args: bool = argument(
        boolean(), False, "write all arguments to <summary_dir>/runs/<run-id>.txt", group=LOGGING
    )
    wandb: bool = argument(boolean(), False, "log to Weights & Biases", group=LOGGING)
    wandb_project: str = argument(
        text(),
        "default_project",
        "project in Weights & Biases",
        group=LOGGING,
        name="wandb_project_name",
    )
    profiling: int = argument(
        integer(-1), -1, "profile from this step on; -1: off", group=LOGGING, unit="optimizer step"
    )
    model_parallel_size: int = argument(
        integer(1),
        1,
        "processes that share one copy of the network: a divisor of its heads",
        group=PROCESSES,
        unit="processes",
    )
    distributed_backend: str = argument(
        choice("nccl", "gloo"),
        "nccl",
        "communication; nccl becomes gloo where there is no GPU",
        group=PROCESSES,
    )
    device: int = argument(
        integer(-1), -1, "GPU of this process; -1: the local rank's, or the CPU", group=PROCESSES
    )
