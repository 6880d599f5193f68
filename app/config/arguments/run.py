"""Arguments of a run that fill no field of the configuration as they are."""

from __future__ import annotations

from app.config.argument import OPTIMIZER, PROCESSES, RUN, VALIDATION, Argument
from app.config.kinds import Kind, boolean, integer, optional, sequence, text


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


RUN_ARGUMENTS: tuple[Argument, ...] = (
    Argument(
        name="experiment_name",
        kind=text(),
        default="MyModel",
        group=RUN,
        help="name of the experiment; the run id is derived from it",
    ),
    Argument(
        name="train_iters",
        kind=optional(integer(0)),
        default=None,
        unit="optimizer steps",
        group=RUN,
        help="length of the whole training; 10000 when epochs is not given either",
    ),
    Argument(
        name="fp16",
        kind=boolean(),
        default=False,
        group=OPTIMIZER,
        help="train in float16; switches bf16 off",
    ),
    Argument(
        name="bf16",
        kind=boolean(),
        default=False,
        group=OPTIMIZER,
        help="train in bfloat16; switches fp16 off",
    ),
    Argument(
        name="deepspeed_config",
        kind=optional(text()),
        default=None,
        group=OPTIMIZER,
        flag_only=True,
        help="a JSON or YAML file: one more layer of section deepspeed",
    ),
    Argument(
        name="eval_batch_size",
        kind=optional(integer(1)),
        default=None,
        unit="samples per process",
        group=VALIDATION,
        help="micro-batch of validation; default: batch_size",
    ),
    Argument(
        name="local_rank",
        kind=optional(integer(0)),
        default=None,
        group=PROCESSES,
        help="number of this process on its node; default: LOCAL_RANK",
    ),
    Argument(
        name="run_id",
        kind=optional(text()),
        default=None,
        group=RUN,
        ours=True,
        help="name of the run's folder; default: experiment_name, lower-cased, with - for "
        "other characters; without one of your own model and mode, such as cogvideox-5b-lora",
    ),
    Argument(
        name="register",
        kind=optional(sequence(_registration())),
        default=None,
        group=RUN,
        ours=True,
        flag_only=True,
        help="make a class of your own usable as a target; repeatable",
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
)
