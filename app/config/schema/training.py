"""Optimizer, precision, schedule, intervals: everything that drives the loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """`deepspeed.optimizer`, with lr and weight decay from their one home in `args`."""

    kind: str  # "adamw", "adam", "ema_adamw" (sat.ops.FusedEmaAdam)
    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    ema_decay: float | None = None  # 0.9999 with FusedEmaAdam; None: no EMA


@dataclass(frozen=True, kw_only=True, slots=True)
class LrScheduleConfig:
    """The learning rate as a pure function of the step (spec of upstream's AnnealingLR)."""

    style: str = "linear"  # constant, linear, cosine, exponential
    decay_steps: int | None = None  # lr_decay_iters; None: train_iters
    decay_ratio: float = 0.1  # final fraction, cosine only
    warmup: float = 0.01  # fraction of decay_steps
    curve: str = "default"  # "sat": 100 steps at 5% when mode is finetune, ends above zero


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """Validation: fixed-noise loss and sample videos."""

    interval: int | None = None
    iterations: int = 100
    batch_size: int = 1
    strict: bool = False  # the whole validation set
    only_latents: bool = False  # only_log_video_latents
    log_videos: bool = True  # log_image
    grid_rows: int = 1  # grid_num_rows: rows of the grid of sampled videos


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """One training run."""

    steps: int  # optimizer steps; from train_iters, or from epochs once the data is counted
    epochs: int | None
    micro_batch: int  # samples per rank and micro-step
    accumulation: int
    seed: int
    mode: str  # pretrain, finetune, inference
    precision: str  # fp32, bf16, fp16
    zero_stage: int
    gradient_clipping: float  # 0: off
    optimizer: OptimizerConfig
    lr_schedule: LrScheduleConfig
    evaluation: EvaluationConfig
    deepspeed: Mapping[str, object] = field(default_factory=dict)  # merged section, for the engine
    save: str | None = None  # folder or s3:// prefix
    save_interval: int | None = 5000
    load: str | None = None  # initial weights
    log_interval: int = 50
    exit_interval: int | None = None
    keep_checkpoints: int | None = None  # ours: keep the newest n; None: all
    force_train: bool = False  # start although initial weights lack keys that are not LoRA
    save_rng: bool = True  # not no_save_rng
    load_rng: bool = True  # not no_load_rng
    resume_dataloader: bool = False  # read under `compat: sat` only
    model_parallel_size: int = 1  # ranks that share one copy of the network
    distributed_backend: str = "nccl"
    device: int = -1  # GPU of this process; -1: the local rank's, or the CPU
    debug: bool = False  # log at level DEBUG
    save_args: bool = False  # write <summary_dir>/runs/<run_id>.txt
    summary_dir: str = ""
    wandb: bool = False
    wandb_project: str = "default_project"
    profiling: int = -1  # profile from this step on; -1: off
