"""Whether a start of a finished run is the same job, a longer one, or another.

Two configurations are the same job when they would have trained the same weights. The keys below
cannot change those: where things lie, how the work is divided and computed, what is logged,
saved, validated or sampled. `load` and the model's files are compared by run.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from app.checkpoint.attempts import AttemptRecord
from app.checkpoint.completion import Completion
from app.checkpoint.layout import config_key
from app.config.argument import arguments_of
from app.config.arguments.table import ARGUMENTS
from app.config.schema.run import CompatConfig
from app.config.values import plain
from app.errors import ConfigError, DataError
from app.run.attempt.differences import Difference, differences, shown
from app.storage.objects import Storage, read_if_present

NOT_THE_JOB = (
    "run_id",
    *(
        f"args.{name}"
        for name in (
            # the command itself, and names
            *("base", "experiment_name", "run_id", "restart", "resume_from", "register"),
            *("deepspeed_config", "deepspeed", "deepscale", "deepscale_config"),
            *(row.name for _, row in arguments_of(CompatConfig)),  # section `compat` has them
            # where things lie
            *("load", "save", "summary_dir", "latent_cache", "output_dir", "input_dir"),
            # processes, devices, memory; the batch of a step is compared as one number
            *("batch_size", "gradient_accumulation_steps", "zero_stage", "model_parallel_size"),
            *("distributed_backend", "device", "local_rank", "nproc_per_node", "num_workers"),
            *("prefetch_factor", "block_size", "checkpoint_activations"),
            *("checkpoint_num_layers", "checkpoint_skip_layers"),
            # logging, saving, stopping
            *("log_interval", "debug", "save_args", "wandb", "wandb_project_name", "profiling"),
            *("save_interval", "keep_checkpoints", "exit_interval", "no_save_rng", "no_load_rng"),
            *("resume_dataloader", "force_train", "force_pretrain", "force_inference"),
            # validation and samples
            *("valid_data", "test_data", "eval_interval", "eval_iters", "eval_batch_size"),
            *("strict_eval", "iterable_dataset_eval", "log_image", "only_log_video_latents"),
            *("grid_num_rows", "input_type", "input_file", "sampling_image_size", "final_size"),
            *("sdedit", "lcm_steps", "sampling_num_frames", "sampling_fps", "only_save_latents"),
            *("latent_channels", "image2video"),
        )
    ),
    *("compat.mode", "compat.precedence", "compat.flag_types", "compat.section_precision"),
    *("compat.activation_checkpointing", "registered"),
    *("data.cache_dir", "data.cache_gib", "data.prefetch_gib", "data.prefetch_s"),
    *("data.decode_deadline_s", "data.decode_memory_gib", "data.quarantine"),
    *("deepspeed.zero_optimization", "deepspeed.train_micro_batch_size_per_gpu"),
    *("deepspeed.gradient_accumulation_steps", "deepspeed.train_batch_size"),
    *("deepspeed.steps_per_print", "deepspeed.wall_clock_breakdown"),
    *("deepspeed.activation_checkpointing", "deepspeed.zero_allow_untested_optimizer"),
    "model",  # run.json
)
LENGTH = ("args.train_iters", "args.epochs")


def compare_jobs(
    storage: Storage,
    completion: Completion,
    attempts: Sequence[AttemptRecord],
    text: str,
    world: Mapping[str, int],
) -> bool:
    """Whether the finished run is done for this configuration, or has to go on (False).

    Args:
        storage: the run's folder.
        completion: its end.
        attempts: its starts.
        text: snapshot of the configuration of this start.
        world: sizes of this start, as in the record of an attempt.

    Raises:
        ConfigError: another job, or a shorter one.
    """
    record = _finishing(completion, attempts)
    old = _snapshot(storage, record)
    new = yaml.safe_load(text)
    where = f"{storage.url}/complete.json"
    if _is_longer(old, new, completion, where):
        return False
    found = [] if old is None else job_differences(old, new)
    if record is not None:
        then, now = samples_per_step(record.world), samples_per_step(world)
        if None not in (then, now) and then != now:
            found.append(Difference("samples of a step", then, now))
    if found:
        each = "; ".join(f"{one.key}: {shown(one.old)} -> {shown(one.new)}" for one in found)
        raise ConfigError(
            f"the run is finished after step {completion.step}, and this is another job: {each}",
            where=where,
            fix="use another --run-id, or --restart to begin this one again at step 0; a larger "
            "--train-iters would continue it",
        )
    return True


def job_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    """The keys of two snapshots that make another job; the length is not among them."""
    found = differences(_with_defaults(old), _with_defaults(new))
    return [one for one in found if not _is_in(one.key, (*NOT_THE_JOB, *LENGTH))]


def samples_per_step(world: Mapping[str, int]) -> int | None:
    """How many samples a step used, of all ranks; None in records that do not say it."""
    names = ("world_size", "micro_batch", "accumulation")
    if any(not isinstance(world.get(name), int) for name in names):
        return None
    copies = world["world_size"] // world.get("model_parallel_size", 1)
    return copies * world["micro_batch"] * world["accumulation"]


def check_length(steps: int, reached: int, where: str) -> None:
    """Refuse a length that the run has passed.

    Raises:
        ConfigError: names both.
    """
    if steps < reached:
        raise ConfigError(
            f"the length is {steps} steps, and the run has done {reached} already",
            where=where,
            fix=f"give a --train-iters of {reached} or more; or --resume-from an earlier "
            "checkpoint, --restart, or another --run-id",
        )


def _is_longer(
    old: Mapping[str, Any] | None, new: Mapping[str, Any], completion: Completion, where: str
) -> bool:
    then, now = (old or {}).get("args", {}), new["args"]
    if now.get("epochs") is None:
        steps = int(now["train_iters"] or 0)
        check_length(steps, completion.step, where)
        return steps > completion.step
    if then.get("epochs") is None:
        # How many steps they are is known when the data is counted.
        return True
    if now["epochs"] < then["epochs"]:
        raise ConfigError(
            f"the length is {now['epochs']} epochs, and the run has done {then['epochs']} already",
            where=where,
            fix="give as many --epochs or more, --restart, or another --run-id",
        )
    return bool(now["epochs"] > then["epochs"])


def _finishing(completion: Completion, attempts: Sequence[AttemptRecord]) -> AttemptRecord | None:
    """The attempt that finished the run; of a file of an earlier version the newest."""
    wanted = (completion.attempt, completion.owner)
    for attempt in reversed(attempts):
        if completion.attempt is None or (attempt.number, attempt.owner) == wanted:
            return attempt
    return None


def _snapshot(storage: Storage, record: AttemptRecord | None) -> dict[str, Any] | None:
    """The configuration of an attempt; None where it is lost."""
    if record is None:
        return None
    key = config_key(record.number, record.owner)
    text = read_if_present(storage, key)
    if text is None:
        return None
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("args"), dict):
        raise DataError(
            "the configuration of the finished run is damaged, so it cannot be compared",
            where=f"{storage.url}/{key}",
            fix="put the file back, use another --run-id, or --restart",
        )
    return found


def _with_defaults(snapshot: Mapping[str, Any]) -> dict[str, Any]:
    """The snapshot with the arguments that its version of this program did not have."""
    defaults = {name: plain(row.default) for name, row in ARGUMENTS.items()}
    return {**snapshot, "args": {**defaults, **snapshot["args"]}}


def _is_in(key: str, names: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)
