"""Arguments about files, data and sampling, and those that nothing reads any more."""

from __future__ import annotations

from app.config.argument import DATA, Argument, Disposition
from app.config.kinds import Kind, boolean, choice, integer, optional, sequence, text

FILES = "configuration files"
SAMPLING = "sampling from prompts"
UNUSED = "accepted for old command lines"

NEVER_READ = "nothing reads it, upstream neither"


def _iterable() -> Kind:
    """`iterable_dataset`: true, false or the word custom."""
    switch = boolean()

    def convert(value: object) -> bool | str:
        return "custom" if value == "custom" else bool(switch.convert(value))

    return Kind("true, false or custom", convert, ("boolean", "string"))


def _sampling(name: str, kind: Kind, default: object, unit: str, text_: str) -> Argument:
    return Argument(
        name=name,
        kind=kind,
        default=default,
        unit=unit,
        group=SAMPLING,
        help=f"{text_} (cogvx sample)",
    )


def _unused(name: str, kind: Kind, default: object, note: str = NEVER_READ) -> Argument:
    return Argument(
        name=name,
        kind=kind,
        default=default,
        group=UNUSED,
        disposition=Disposition.ACCEPTED,
        note=note,
        help=f"no effect: {note}",
    )


DATA_ARGUMENTS: tuple[Argument, ...] = (
    Argument(
        name="base",
        kind=optional(sequence(text())),
        default=None,
        group=FILES,
        flag_only=True,
        help="YAML files, merged left to right",
    ),
    Argument(
        name="train_data",
        kind=optional(sequence(text(), single=True)),
        default=None,
        group=DATA,
        help="folders or shards to train on, local or s3://",
    ),
    Argument(
        name="valid_data",
        kind=optional(sequence(text(), single=True)),
        default=None,
        group=DATA,
        help="folders or shards to validate on",
    ),
    Argument(
        name="test_data",
        kind=optional(sequence(text(), single=True)),
        default=None,
        group=DATA,
        disposition=Disposition.LATER,
        note="the final evaluation on test data is not supported yet",
        help="folders or shards evaluated once at the end",
    ),
    Argument(
        name="split",
        kind=text(),
        default="1000,1,1",
        group=DATA,
        help="shares of training, validation and test data in train_data; named data goes before "
        "its share, and without `split` nothing is split off",
    ),
    Argument(
        name="iterable_dataset",
        kind=_iterable(),
        default=False,
        group=DATA,
        disposition=Disposition.ACCEPTED,
        note="the class named by data.target decides whether data come as shards",
        help="upstream's switch for shards",
    ),
    Argument(
        name="iterable_dataset_eval",
        kind=choice("", "True", "False"),
        default="",
        group=DATA,
        disposition=Disposition.ACCEPTED,
        note="the class named by data.target decides whether data come as shards",
        help="upstream's switch for shards of validation data",
    ),
    Argument(
        name="batch_from_same_dataset",
        kind=boolean(),
        default=False,
        group=DATA,
        disposition=Disposition.LATER,
        note="batches from one source at a time are not supported yet",
        help="all samples of a batch from one entry of train_data",
    ),
    _unused("block_size", integer(1), 10000, "`split` cuts by samples; nothing reads a block size"),
    _sampling("output_dir", text(), "samples", "", "folder of the sampled videos"),
    _sampling("input_type", choice("cli", "txt"), "cli", "", "prompts typed, or from a file"),
    _sampling("input_file", text(), "input.txt", "", "prompts, one per line"),
    _sampling(
        "sampling_image_size",
        sequence(integer(8), length=2),
        (768, 1360),
        "pixels",
        "rows and columns of the videos",
    ),
    _sampling("sampling_num_frames", integer(1), 32, "latent frames", "length of the videos"),
    _sampling("sampling_fps", integer(1), 8, "frames per second", "speed of the videos"),
    _unused("latent_channels", integer(1), 32, "the network says how many channels latents have"),
    _sampling("only_save_latents", boolean(), False, "", "write latents instead of videos"),
    _sampling("image2video", boolean(), False, "", "prompts carry an image: prompt@@path"),
    _sampling("force_inference", boolean(), False, "", "sample although weights lack keys"),
    _unused("force_pretrain", boolean(), False),
    _unused("input_dir", optional(text()), None),
    _unused("final_size", integer(1), 2048),
    _unused("lcm_steps", optional(integer(1)), None),
    _unused("deepspeed", boolean(), False, "training always uses DeepSpeed"),
    _unused("deepscale", boolean(), False, "deprecated by DeepSpeed"),
    _unused("deepscale_config", optional(text()), None, "deprecated by DeepSpeed"),
)
