"""Arguments that upstream does not have: the run's identity, compatibility, processes."""

from __future__ import annotations

from app.config.arguments.row import Argument
from app.config.kinds import Kind, choice, integer, optional, sequence, text

COMPATIBILITY = "compatibility with upstream"
IDENTITY = "run"
PROCESSES = "processes and devices"

# argument -> (field of CompatConfig, our value, upstream's value, what it decides, id of the
# difference in docs/upstream_differences.md)
COMPAT_KEYS: dict[str, tuple[str, str, str, str, str]] = {
    "precedence": ("precedence", "flags", "yaml", "who wins: a flag or the YAML", "C4"),
    "flag_types": ("flag_types", "typed", "sat", "how texts of flags become values", "C7"),
    "section_precision": (
        "section_precision",
        "args",
        "sat",
        "precision when section deepspeed names none",
        "C11",
    ),
    "activation_checkpointing": (
        "activation_checkpointing",
        "args",
        "model",
        "whether args.checkpoint_activations reaches the network",
        "C12",
    ),
    "lr_curve": ("lr_curve", "default", "sat", "learning-rate curve", "T1"),
    "frame_rule": ("frame_rule", "exact", "sat", "which frames of a clip are used", "D1"),
    "sample_order": ("order", "epoch", "sat", "order of samples", "D2"),
    "draws": ("draws", "keyed", "sat", "where random numbers come from", "T2"),
    "strata": ("strata", "global", "sat", "stratification of timesteps", "T3"),
    "image_dropout": (
        "image_dropout",
        "sample",
        "micro_batch",
        "unit of dropping the image condition",
        "T4",
    ),
    "position_rows": (
        "position_rows",
        "place",
        "sat",
        "rows of a position table that latents of another size use",
        "F33",
    ),
}


def _registration() -> Kind:
    """`NAME=package.module:Class`."""

    def convert(value: object) -> str:
        name, _, implementation = str(value).partition("=")
        module, _, attribute = implementation.partition(":")
        parts = [*module.split("."), *attribute.split(".")]
        if not name or not all(part.isidentifier() for part in parts):
            raise ValueError
        return str(value)

    return Kind("NAME=package.module:Class", convert)


OUR_ARGUMENTS: tuple[Argument, ...] = (
    Argument(
        name="run_id",
        kind=optional(text()),
        default=None,
        group=IDENTITY,
        ours=True,
        help="name of the run's folder; default: experiment_name, lower-cased, with - for "
        "other characters",
    ),
    Argument(
        name="register",
        kind=optional(sequence(_registration())),
        default=None,
        group=IDENTITY,
        ours=True,
        flag_only=True,
        help="make a class of your own usable as a target; repeatable",
    ),
    Argument(
        name="latent_cache",
        kind=optional(text()),
        default=None,
        group="data",
        ours=True,
        help="folder or s3:// prefix that cogvx encode wrote: train from encoded clips, without "
        "the VAE and T5",
    ),
    Argument(
        name="keep_checkpoints",
        kind=optional(integer(1)),
        default=None,
        unit="checkpoints",
        group=IDENTITY,
        ours=True,
        help="keep only the newest n checkpoints of the run; null: all",
    ),
    Argument(
        name="nproc_per_node",
        kind=optional(integer(1)),
        default=None,
        unit="processes",
        group=PROCESSES,
        ours=True,
        flag_only=True,
        help="processes that `cogvx train` starts on this machine; default: one per GPU",
    ),
    Argument(
        name="compat",
        kind=choice("default", "sat"),
        default="default",
        group=COMPATIBILITY,
        ours=True,
        help="sat: upstream's behaviour wherever ours differs",
    ),
    *(
        Argument(
            name=name,
            kind=optional(choice(default, upstream)),
            default=None,
            group=COMPATIBILITY,
            ours=True,
            help=f"{what}: {default}, or {upstream} as upstream ({identity}); "
            "default: what compat says",
        )
        for name, (_, default, upstream, what, identity) in COMPAT_KEYS.items()
    ),
)
