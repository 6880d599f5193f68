"""What a configuration still lacks before a run may start.

`cogvx config check` accepts a stock file as it came, with warnings; a run does not start with
one. Nothing is opened here: the part that reads a path finds out whether it exists.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from app.config import upstream
from app.config.problems import Problems
from app.config.schema.data import split_shares
from app.config.schema.encoders import VAEConfig
from app.config.schema.run import EncodableRun, RunConfig, SamplableRun, TrainableRun

# What the encoder of clips reads.
ENCODED = (
    "args.train_data",
    "args.valid_data",
    "data",
    "model.conditioner_config",
    "model.first_stage_config",
)
SAMPLES = "mode: inference samples from prompts, it does not train"


def lacking(config: RunConfig) -> Problems:
    """Everything that keeps the run from starting, as mistakes."""
    problems = Problems(config.origins)
    _placeholders(config, problems)
    _schemes(config, problems)
    if config.training is None:
        problems.add(
            SAMPLES, where="args.mode", fix="run cogvx sample with the same files and flags"
        )
        return problems
    _sections(config, problems)
    if not config.arguments["train_data"]:
        problems.add(
            "'train_data' is missing", where="args.train_data", fix="give folders or shards"
        )
    if config.training.lora_from and config.model and config.model.network.params.lora is None:
        problems.add(
            "'lora_from' gives LoRA pairs, and the network has none",
            where="args.lora_from",
            fix="add lora_config to the model file (a *_lora.yaml), or leave lora_from out",
        )
    if config.training.save is None:
        problems.add("'save' is missing", where="args.save", fix="give a folder or an s3:// prefix")
    if config.training.evaluation.interval and not _has_validation(config):
        problems.warn("eval_interval is set, but there is no valid_data: nothing is validated")
    if config.model is not None and config.data is not None:
        note = config.model.network.params.in_diffusers(config.data.clip_sizes)
        if note is not None:
            problems.warn(note)
    return problems


def _has_validation(config: RunConfig) -> bool:
    """Whether validation data is named, or split off the training data."""
    if config.arguments["valid_data"] or config.data is None:
        return bool(config.arguments["valid_data"])
    return split_shares(config.data.split, has_valid=False)[1] > 0


def trainable_run(config: RunConfig) -> TrainableRun:
    """The configuration of a run that may start.

    Raises:
        ConfigErrors: everything that `lacking` finds.
    """
    missing = lacking(config)
    missing.raise_errors()
    save = config.training.save if config.training is not None else None
    return TrainableRun(
        **_values(config), runs_url=str(save), start_warnings=tuple(missing.warnings)
    )


def samplable_run(config: RunConfig, *, has_run: bool) -> SamplableRun:
    """The configuration of sampling that may start.

    Args:
        config: any.
        has_run: the network's weights come from a run instead of `load`.

    Raises:
        ConfigErrors: everything that is missing.
    """
    problems = Problems(config.origins)
    _placeholders(config, problems)
    _schemes(config, problems)
    if config.model is None:
        problems.add(
            "there is no section 'model'",
            where="model",
            fix="add a model file: --base configs/cogvideox_2b.yaml",
        )
    if config.arguments["load"] is None and not has_run:
        problems.add(
            "'load' is missing", where="args.load", fix="give --load WEIGHTS, or --run URL"
        )
    problems.raise_errors()
    return SamplableRun(**_values(config))


def encodable_run(config: RunConfig) -> EncodableRun:
    """The configuration of encoding that may start; it needs neither `load` nor `save`.

    Raises:
        ConfigErrors: everything that is missing.
    """
    problems = Problems(config.origins)
    _placeholders(config, problems, ENCODED)
    _schemes(config, problems)
    if config.training is None:
        problems.add(SAMPLES, where="args.mode", fix="use the files and flags of the training")
    _sections(config, problems)
    if not config.arguments["train_data"] and not config.arguments["valid_data"]:
        problems.add(
            "'train_data' is missing", where="args.train_data", fix="give folders or shards"
        )
    problems.raise_errors()
    return EncodableRun(**_values(config))


def _values(config: RunConfig) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in fields(RunConfig)}


def _sections(config: RunConfig, problems: Problems) -> None:
    if config.model is None:
        problems.add(
            "there is no section 'model'",
            where="model",
            fix="add a model file: --base configs/cogvideox_2b_lora.yaml",
        )
    if config.data is None:
        problems.add(
            "there is no section 'data'",
            where="data",
            fix="add a recipe: --base ... configs/sft.yaml",
        )


def _schemes(config: RunConfig, problems: Problems) -> None:
    """Paths are local or s3://; anything else is refused here, not after minutes of starting."""
    names = ("load", "lora_from", "save", "latent_cache")
    paths = {f"args.{name}": config.arguments[name] for name in names}
    if config.model is not None:
        text = config.model.conditioner.text.model_dir
        paths["model.conditioner_config.params.emb_models.0.params.model_dir"] = text
        first_stage = config.model.first_stage.params
        if isinstance(first_stage, VAEConfig):
            paths["model.first_stage_config.params.ckpt_path"] = first_stage.ckpt_path
    for where, path in paths.items():
        scheme, separator, _ = str(path).partition("://")
        if separator and scheme not in ("s3", "file"):
            problems.add(
                f"'{path}' cannot be used: {scheme}:// is not supported",
                where=where,
                fix="give a local path or an s3:// address",
            )


def _placeholders(config: RunConfig, problems: Problems, below: tuple[str, ...] = ("",)) -> None:
    found = dict(upstream.placeholders({"args": config.arguments}))
    for name, section in config.sections.items():
        found |= dict(upstream.placeholders(section, name))
    for path, text in found.items():
        if not path.startswith(below):
            continue
        problems.add(f"'{text}' is a placeholder", where=path, fix=f"give the path: {path}=PATH")
