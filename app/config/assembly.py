"""From merged sections and resolved arguments to the frozen `RunConfig`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from app.config import upstream
from app.config.layers import Merged
from app.config.problems import Problems
from app.config.reader import Context
from app.config.schema.data import NO_SPLIT, DataConfig
from app.config.schema.model import DiTConfig, ModelConfig
from app.config.schema.run import RunConfig
from app.config.schema.training import (
    EvaluationConfig,
    LrScheduleConfig,
    OptimizerConfig,
    TrainingConfig,
)
from app.config.sections.data import read_data
from app.config.sections.deepspeed import (
    HOMES,
    check_section,
    default_section,
    read_optimizer,
    value_at,
    written_back,
)
from app.config.sections.encoders import check_clip_shares
from app.config.sections.model import read_model
from app.config.target import Component, Registry
from app.config.values import Values
from app.errors import ConfigError

RUN_ID = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?")
RECOMPUTE = ("checkpoint_activations", "checkpoint_num_layers", "checkpoint_skip_layers")


def assemble(
    merged: Merged,
    resolved: Values,
    registered: Mapping[str, str],
    targets: Registry,
    problems: Problems,
) -> RunConfig | None:
    """Build the run's configuration; None if any mistake was recorded on the way."""
    context = Context(targets, problems)
    sections: dict[str, object] = {
        key: merged.sections[key] for key in ("model", "data") if key in merged.sections
    }
    values = resolved.values
    model = read_model(sections["model"], "model", context) if "model" in sections else None
    _take_degree(model, resolved)
    data = read_data(sections["data"], "data", context) if "data" in sections else None
    training, deepspeed = _training(merged, resolved, context)
    if deepspeed is not None:
        sections["deepspeed"] = deepspeed
    origins = _origins(merged, resolved, deepspeed)
    problems.origins = origins  # flags included: until now only files and overrides were known
    run_id = _run_id(values, problems)
    if problems.errors:
        return None
    if data is not None:
        data = _with_arguments(data, resolved, problems)
    if model is not None:
        model = _adjusted(model, data, resolved, problems)
        check_clip_shares(model, data, problems)
    return RunConfig(
        run_id=run_id,
        compat=resolved.compat,
        model=model,
        data=data,
        training=training,
        arguments={name: _plain(value) for name, value in values.items()},
        sections=sections,
        origins=origins,
        registered=dict(registered),
        warnings=tuple(problems.warnings),
    )


def _plain(value: object) -> object:
    """Lists, as upstream's Namespace has them."""
    return list(value) if isinstance(value, tuple) else value


def _run_id(values: Mapping[str, Any], problems: Problems) -> str:
    given, name = values["run_id"], str(values["experiment_name"])
    derived = re.sub(r"[^a-z0-9-]", "-", name.lower()).strip("-")
    run_id = given if given is not None else derived
    if not RUN_ID.fullmatch(run_id):
        problems.add(
            f"'{run_id}' is no name for a run",
            where="args.run_id" if given is not None else "args.experiment_name",
            fix="use lower-case letters, digits, '-', '.' and '_', such as "
            f"'{derived or 'my-run'}'",
        )
    elif given is None and values["mode"] != "inference":
        problems.warn(f"run_id: {run_id} (from experiment_name '{name}')")
    return run_id


def _training(
    merged: Merged, resolved: Values, context: Context
) -> tuple[TrainingConfig | None, dict[str, Any] | None]:
    """The training and the final `deepspeed` section; upstream's `args` carry both."""
    values = resolved.values
    given = merged.sections.get("deepspeed")
    if values["mode"] == "inference":
        return None, given
    section = given if isinstance(given, dict) else default_section(values["zero_stage"])
    clipping = check_section(section, "deepspeed", context)
    optimizer = read_optimizer(section.get("optimizer"), "deepspeed.optimizer", context)
    if context.problems.errors:
        return None, None
    stage = value_at(section, HOMES["zero_stage"])
    synced = dict(values)
    if resolved.compat.precedence == "yaml" and isinstance(stage, int):
        synced["zero_stage"] = stage  # upstream's args.zero_stage never reaches a given section
    section = written_back(section, synced)
    optimizer |= {"lr": values["lr"], "weight_decay": values["weight_decay"]}
    training = TrainingConfig(
        optimizer=OptimizerConfig(**optimizer),
        lr_schedule=_lr_schedule(resolved),
        evaluation=_evaluation(values),
        deepspeed=section,
        gradient_clipping=clipping,
        zero_stage=synced["zero_stage"],
        **_loop(values),
    )
    return training, section


def _loop(values: Mapping[str, Any]) -> dict[str, Any]:
    precision = "bf16" if values["bf16"] else "fp16" if values["fp16"] else "fp32"
    same = (
        "seed",
        "mode",
        "save",
        "save_interval",
        "load",
        "log_interval",
        "exit_interval",
        "keep_checkpoints",
        "epochs",
        "force_train",
        "resume_dataloader",
        "model_parallel_size",
        "distributed_backend",
        "device",
        "debug",
        "save_args",
        "summary_dir",
        "wandb",
        "profiling",
    )
    return {name: values[name] for name in same} | {
        "steps": values["train_iters"] or 0,
        "micro_batch": values["batch_size"],
        "accumulation": values["gradient_accumulation_steps"],
        "precision": precision,
        "save_interval": values["save_interval"] or None,
        "save_rng": not values["no_save_rng"],
        "load_rng": not values["no_load_rng"],
        "wandb_project": values["wandb_project_name"],
    }


def _lr_schedule(resolved: Values) -> LrScheduleConfig:
    values = resolved.values
    return LrScheduleConfig(
        style=values["lr_decay_style"],
        decay_steps=values["lr_decay_iters"],
        decay_ratio=values["lr_decay_ratio"],
        warmup=values["warmup"],
        curve=resolved.compat.lr_curve,
    )


def _evaluation(values: Mapping[str, Any]) -> EvaluationConfig:
    return EvaluationConfig(
        interval=values["eval_interval"],
        iterations=values["eval_iters"],
        batch_size=values["eval_batch_size"] or values["batch_size"],
        strict=values["strict_eval"],
        only_latents=values["only_log_video_latents"],
        log_videos=values["log_image"],
        grid_rows=values["grid_num_rows"],
    )


def _with_arguments(data: DataConfig, resolved: Values, problems: Problems) -> DataConfig:
    """Add the paths and loader settings that `args` holds."""
    values = resolved.values
    paths = {
        name: upstream.storage_urls(values[name], f"args.{name}", problems)
        for name in ("train_data", "valid_data", "test_data")
    }
    upstream.check_iterable(values, data, problems)
    return dataclasses.replace(
        data,
        train=paths["train_data"],
        valid=paths["valid_data"],
        test=paths["test_data"],
        train_weights=values["train_data_weights"],
        split=values["split"] if resolved.given("split") else NO_SPLIT,
        num_workers=values["num_workers"],
        prefetch_factor=values["prefetch_factor"],
        frame_rule=resolved.compat.frame_rule,
        latent_cache=values["latent_cache"],
    )


def _adjusted(
    model: ModelConfig, data: DataConfig | None, resolved: Values, problems: Problems
) -> ModelConfig:
    """Apply the arguments that reach into the model, and what the dataset decides."""
    pixels = data is not None and not isinstance(data.params, dict)
    latents = upstream.latents_of_pixels(model.latent_input, pixels, problems)
    model = dataclasses.replace(model, latent_input=latents)
    if resolved.values["sdedit"]:
        sampler = dataclasses.replace(model.sampler.params, sdedit=True)
        model = dataclasses.replace(model, sampler=_with_params(model.sampler, sampler))
    network = model.network.params
    if resolved.compat.position_rows == "sat" and isinstance(network, DiTConfig):
        position = dataclasses.replace(network.position, first_rows=True)
        network = dataclasses.replace(network, position=position)
        model = dataclasses.replace(model, network=_with_params(model.network, network))
    trains = resolved.values["mode"] != "inference"
    model = _shared(model, resolved, problems, trains=trains)
    network = model.network.params
    if trains and resolved.compat.activation_checkpointing == "args":
        given = {name: resolved.values[name] for name in RECOMPUTE if resolved.given(name)}
        if given and isinstance(network, DiTConfig):
            _report_recompute(given, network, resolved, problems)
            changed = dataclasses.replace(network, **given)
            model = dataclasses.replace(model, network=_with_params(model.network, changed))
    return model


def _take_degree(model: ModelConfig | None, resolved: Values) -> None:
    """`transformer_args.model_parallel_size` counts where the argument says 1, as stock files do.

    Upstream wants the same number in both places.
    """
    network = model.network.params if model is not None else None
    if isinstance(network, DiTConfig) and resolved.values["model_parallel_size"] == 1:
        resolved.values["model_parallel_size"] = network.model_parallel_size
        if network.model_parallel_size > 1:
            resolved.origins["model_parallel_size"] = (
                "model.network_config.params.transformer_args.model_parallel_size"
            )


def _shared(
    model: ModelConfig, resolved: Values, problems: Problems, *, trains: bool
) -> ModelConfig:
    """The number of ranks that share the network; sampling never shares it."""
    network, size = model.network.params, resolved.values["model_parallel_size"]
    size = size if trains else 1
    where = "args.model_parallel_size"
    if not isinstance(network, DiTConfig):
        if size > 1:
            problems.add(
                "a network of your own cannot be shared by processes", where=where, fix="use 1"
            )
        return model
    inside = network.model_parallel_size
    if trains and inside not in (1, size):
        problems.add(
            f"transformer_args.model_parallel_size is {inside}, args.model_parallel_size {size}",
            where=where,
            fix="give the number once: leave the other one at 1",
        )
        return model
    try:
        changed = dataclasses.replace(network, model_parallel_size=size)
    except ConfigError as error:
        problems.add(error.what, where=where, fix=error.fix)
        return model
    return dataclasses.replace(model, network=_with_params(model.network, changed))


def _with_params(part: Component[Any], params: Any) -> Component[Any]:
    return Component(part.target, part.implementation, params)


def _report_recompute(
    given: Mapping[str, Any], network: DiTConfig, resolved: Values, problems: Problems
) -> None:
    for name, value in given.items():
        if getattr(network, name) != value:
            problems.warn(
                f"{name}: {value} ({resolved.origins[name]}) wins over {getattr(network, name)} "
                f"(model.network_config.params.transformer_args.{name})"
            )


def _origins(
    merged: Merged, resolved: Values, deepspeed: Mapping[str, Any] | None
) -> dict[str, str]:
    """Dotted key -> file, flag, override or default, for every key of the run."""
    origins = {
        path: origin for path, origin in merged.origins.items() if not path.startswith("args.")
    }
    for name, origin in resolved.origins.items():
        origins[f"args.{name}"] = origin
    if deepspeed is not None and resolved.values["mode"] != "inference":
        homes = {name: ".".join(("deepspeed", *path)) for name, path in HOMES.items()}
        homes |= {name: f"deepspeed.{name}.enabled" for name in ("fp16", "bf16")}
        for name, path in homes.items():
            if resolved.origins[name] != "default" or path not in origins:
                origins[path] = resolved.origins[name]
    return origins
