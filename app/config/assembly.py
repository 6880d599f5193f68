"""From merged sections and resolved arguments to the frozen `RunConfig`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from app.config import upstream
from app.config.argument import arguments_of, filled
from app.config.layers import Merged
from app.config.problems import Problems
from app.config.reader import Context
from app.config.run_name import STOCK_NAMES, run_name
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
from app.config.target import Registry
from app.config.values import Values, plain
from app.errors import ConfigError

RUN_ID = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?")


def assemble(
    merged: Merged,
    resolved: Values,
    registered: Mapping[str, str],
    targets: Registry,
    problems: Problems,
) -> RunConfig:
    """Build the run's configuration; raises ConfigErrors if any mistake was recorded on the way."""
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
    run_id = _run_id(resolved, model, problems)
    problems.raise_errors()
    if data is not None:
        data = _with_arguments(data, resolved, problems)
    if model is not None:
        model = _adjusted(model, data, resolved, problems)
        check_clip_shares(model, data, problems)
    problems.raise_errors()
    return RunConfig(
        run_id=run_id,
        compat=resolved.compat,
        model=model,
        data=data,
        training=training,
        arguments={name: plain(value) for name, value in values.items()},
        sections=sections,
        origins=origins,
        registered=dict(registered),
        warnings=tuple(problems.warnings),
    )


def _run_id(resolved: Values, model: ModelConfig | None, problems: Problems) -> str:
    values = resolved.values
    given, name = values["run_id"], str(values["experiment_name"])
    derived = re.sub(r"[^a-z0-9-]", "-", name.lower()).strip("-")
    origin = f"from experiment_name '{name}'"
    is_own = resolved.origins["experiment_name"].startswith(("flag ", "override "))
    if name in STOCK_NAMES and not is_own and model is not None:
        derived, origin = run_name(model), "model and mode; --run-id gives another"
    run_id = given if given is not None else derived
    if not RUN_ID.fullmatch(run_id):
        problems.add(
            f"'{run_id}' is not a valid run id",
            where="args.run_id" if given is not None else "args.experiment_name",
            fix="use lower-case letters, digits, '-', '.' and '_', such as "
            f"'{derived or 'my-run'}'",
        )
    elif given is None and values["mode"] != "inference":
        problems.warn(f"run_id: {run_id} ({origin})")
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
    schedule = filled(LrScheduleConfig, values)
    evaluation = filled(EvaluationConfig, values)
    training = filled(TrainingConfig, values) | {
        "steps": values["train_iters"] or 0,
        "precision": "bf16" if values["bf16"] else "fp16" if values["fp16"] else "fp32",
        "save_interval": values["save_interval"] or None,
        "zero_stage": synced["zero_stage"],
        "gradient_clipping": clipping,
        "deepspeed": section,
        "optimizer": OptimizerConfig(**filled(OptimizerConfig, values), **optimizer),
        "lr_schedule": LrScheduleConfig(curve=resolved.compat.lr_curve, **schedule),
        "evaluation": EvaluationConfig(
            batch_size=values["eval_batch_size"] or values["batch_size"], **evaluation
        ),
    }
    return TrainingConfig(**training), section


def _with_arguments(data: DataConfig, resolved: Values, problems: Problems) -> DataConfig:
    """Add the paths and loader settings that `args` holds."""
    values = resolved.values
    paths = {
        name: upstream.storage_urls(values[name], f"args.{name}", problems)
        for name in ("train_data", "valid_data", "test_data")
    }
    upstream.check_iterable(values, data, problems)
    return replace(
        data,
        **filled(DataConfig, values),
        train=paths["train_data"],
        valid=paths["valid_data"],
        test=paths["test_data"],
        split=values["split"] if resolved.given("split") else NO_SPLIT,
    )


def _adjusted(
    model: ModelConfig, data: DataConfig | None, resolved: Values, problems: Problems
) -> ModelConfig:
    """Apply the arguments that reach into the model, and what the dataset decides."""
    pixels = data is not None and not isinstance(data.params, dict)
    latents = upstream.latents_of_pixels(model.latent_input, pixels, problems)
    sampler = model.sampler.params
    if resolved.values["sdedit"]:
        sampler = replace(sampler, sdedit=True)
    network = _adjusted_network(model.network.params, resolved, problems)
    return replace(
        model,
        latent_input=latents,
        sampler=replace(model.sampler, params=sampler),
        network=replace(model.network, params=network),
    )


def _take_degree(model: ModelConfig | None, resolved: Values) -> None:
    """`transformer_args.model_parallel_size` counts where the argument says 1, as stock files do.

    Upstream wants the same number in both places.
    """
    if model is not None and resolved.values["model_parallel_size"] == 1:
        degree = resolved.values["model_parallel_size"] = model.network.params.model_parallel_size
        if degree > 1:
            resolved.origins["model_parallel_size"] = (
                "model.network_config.params.transformer_args.model_parallel_size"
            )


def _adjusted_network(network: DiTConfig, resolved: Values, problems: Problems) -> DiTConfig:
    """What `args` and `compat` say about the network; sampling never shares it among ranks."""
    values = resolved.values
    changes: dict[str, Any] = {}
    changes["position"] = replace(
        network.position,
        first_rows=resolved.compat.position_rows == "sat",
        fits_size=resolved.compat.rotary_positions == "diffusers" and network.can_fit_size,
    )
    if values["mode"] == "inference":
        return replace(network, model_parallel_size=1, **changes)
    if resolved.compat.activation_checkpointing == "args":
        given = [name for name, _ in arguments_of(DiTConfig) if resolved.given(name)]
        for name in given:
            other = getattr(network, name)
            if other != values[name]:
                problems.warn(
                    f"{name}: {values[name]} ({resolved.origins[name]}) wins over {other} "
                    f"(model.network_config.params.transformer_args.{name})"
                )
        changes |= {name: values[name] for name in given}
    inside, size = network.model_parallel_size, values["model_parallel_size"]
    where = "args.model_parallel_size"
    if inside not in (1, size):
        problems.add(
            f"transformer_args.model_parallel_size is {inside}, args.model_parallel_size {size}",
            where=where,
            fix="give the number once: leave the other one at 1",
        )
        return network
    try:
        return replace(network, model_parallel_size=size, **changes)
    except ConfigError as error:
        problems.add(error.what, where=where, fix=error.fix)
        return network


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
