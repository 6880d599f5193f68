"""The request of `cogvx sample`: sizes, prompts and paths, checked before weights are read.

Without torch, so that a wrong size or a missing prompt is found early.
"""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from app.config.schema.encoders import VAEConfig
from app.config.schema.model import DiTConfig
from app.config.schema.run import RunConfig, SamplableRun
from app.errors import ConfigError, DataError, InputMissingError, UsageError
from app.evaluation.prompts import Prompt, read_prompts
from app.storage.fetch import fetch
from app.storage.node_disk import node_folder

LARGEST = (768, 1360)  # rows, columns of CogVideoX1.5; its position table allows more
COMMAND_LINE = "the command line"
_SIZE = re.compile(r"(\d+)\s*[xX,]\s*(\d+)")


@dataclass(frozen=True, slots=True)
class OwnOptions:
    """Options that only `cogvx sample` has; None and empty where they were not given."""

    prompt: Sequence[str] = ()
    image: str | None = None
    size: str | None = None
    num_frames: int | None = None
    lora: str | None = None
    run: str | None = None
    step: int | None = None
    weights: str | None = None
    save_latents: bool = False
    overwrite: bool = False

    @classmethod
    def from_args(cls, args: Namespace) -> OwnOptions:
        """The options of a Namespace that were given."""
        values = {field.name: getattr(args, field.name, None) for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if value is not None})


@dataclass(frozen=True, slots=True)
class VideoSize:
    """Of every video of the run.

    Attributes:
        latent_frames: without padding; the video has rate * (latent_frames - 1) + 1 frames.
        rows, columns: pixels. For image-to-video with 1.5, `rows` and `columns` follow the
            image, and `short_side` is kept.
    """

    latent_frames: int
    rows: int
    columns: int

    @property
    def short_side(self) -> int:
        return min(self.rows, self.columns)


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """Everything about the videos but the weights."""

    size: VideoSize
    per_prompt: int
    fps: int
    seed: int
    out: str
    with_images: bool
    keeps_latents: bool
    decodes: bool
    overwrite: bool


def request_of(config: SamplableRun, own: OwnOptions) -> SampleRequest:
    """The request of a configuration and the command's own options.

    Raises:
        ConfigError: a size that this model cannot have.
    """
    arguments = config.arguments
    with_images = config.model.network.params.in_channels > config.model.network.params.out_channels
    if own.run is None and (own.step is not None or own.weights is not None):
        raise UsageError(
            "--step and --weights choose a checkpoint of a run, and no run is given",
            where=COMMAND_LINE,
            fix="add --run URL, or leave them out",
        )
    if arguments["image2video"] and not with_images:
        raise ConfigError(
            "image2video is set, but the network takes no image",
            where="args.image2video and model.network_config.params.in_channels",
            fix="use the configuration of an image-to-video model, or leave image2video out",
        )
    only_latents = bool(arguments["only_save_latents"])
    return SampleRequest(
        size=_size(config, own),
        per_prompt=int(str(arguments["batch_size"])) if _was_given(config, "batch_size") else 1,
        fps=int(str(arguments["sampling_fps"])),
        seed=int(str(arguments["seed"])),
        out=str(arguments["output_dir"]),
        with_images=with_images,
        keeps_latents=only_latents or own.save_latents,
        decodes=not only_latents,
        overwrite=own.overwrite,
    )


def prompts_of(
    config: RunConfig, own: OwnOptions, typed: Iterable[str], *, with_images: bool
) -> Iterable[Prompt]:
    """The prompts, from the options, a file, or typed lines; lazy for the last.

    Raises:
        InputMissingError: the file is not there.
        UsageError: an image is given without a prompt, or is needed and not given.
    """
    if own.prompt:
        found = _from_options(own, with_images=with_images)
        if not found:
            raise UsageError("--prompt is empty", where=COMMAND_LINE, fix="describe the video")
        return found
    if own.image is not None:
        raise UsageError("--image needs --prompt", where=COMMAND_LINE, fix="add --prompt TEXT")
    if config.arguments["input_type"] == "cli":
        return read_prompts(typed, "standard input", with_images=with_images)
    name = str(config.arguments["input_file"])
    lines = _lines(name)
    found = list(read_prompts(lines, name, with_images=with_images))
    if not found:
        raise InputMissingError(
            "the file of prompts has no prompt", where=name, fix="write one prompt per line"
        )
    return found


def _lines(name: str) -> list[str]:
    """Lines of a file of prompts, local or s3://; only line feeds end a line."""
    try:
        path = fetch(name, node_folder("prompts"))
    except InputMissingError as missing:
        raise InputMissingError(
            "there is no such file of prompts",
            where=f"args.input_file: {name}",
            fix="write one prompt per line into it, or give --prompt TEXT",
        ) from missing
    try:
        return path.read_bytes().decode("utf-8").split("\n")
    except UnicodeDecodeError as cause:
        raise DataError(
            f"the file of prompts is not UTF-8 (byte {cause.start})",
            where=f"args.input_file: {name}",
            fix="save it as UTF-8",
        ) from cause


def _from_options(own: OwnOptions, *, with_images: bool) -> Sequence[Prompt]:
    if own.image is None:
        return list(read_prompts(own.prompt, "--prompt", with_images=with_images))
    if not with_images:
        raise UsageError(
            "--image is given, but the model makes videos from text alone",
            where=COMMAND_LINE,
            fix="leave --image out, or use the configuration of an image-to-video model",
        )
    return [Prompt(i, text.strip(), own.image) for i, text in enumerate(own.prompt)]


def _size(config: SamplableRun, own: OwnOptions) -> VideoSize:
    network = config.model.network.params
    stride = _space_stride(config)
    native = (network.latent_height * stride, network.latent_width * stride)
    rows, columns = map(min, LARGEST, native)
    if own.size is not None:
        match = _SIZE.fullmatch(own.size.strip())
        if match is None:
            raise UsageError(
                f"--size '{own.size}' is not two numbers",
                where=COMMAND_LINE,
                fix="write rows x columns in pixels: --size 480x720",
            )
        rows, columns = int(match[1]), int(match[2])
    elif _was_given(config, "sampling_image_size"):
        given = config.arguments["sampling_image_size"]
        assert isinstance(given, list | tuple)
        rows, columns = (int(side) for side in given)
    step_rows, step_columns = stride * network.patch.rows, stride * network.patch.columns
    _check_side("rows", rows, step_rows)
    _check_side("columns", columns, step_columns)
    return VideoSize(_latent_frames(config, own, network), rows, columns)


def _latent_frames(config: SamplableRun, own: OwnOptions, network: DiTConfig) -> int:
    """Latent frames without padding."""
    rate = network.time_compressed_rate
    if own.num_frames is not None:
        if own.num_frames < 1 or (own.num_frames - 1) % rate:
            shorter = max(1, (own.num_frames - 1) // rate * rate + 1)
            raise ConfigError(
                f"{own.num_frames} frames are not {rate}k + 1",
                where="--num-frames",
                fix=f"use {shorter} or {shorter + rate}",
            )
        return (own.num_frames - 1) // rate + 1
    if not _was_given(config, "sampling_num_frames"):
        return (network.num_frames - 1) // rate + 1
    count = int(str(config.arguments["sampling_num_frames"]))
    # The original counts the network's input: 22 for the 81 frames (21 latents) of 1.5.
    return count - 1 if network.patch.frames > 1 and count % network.patch.frames == 0 else count


def _space_stride(config: SamplableRun) -> int:
    first_stage = config.model.first_stage.params
    if isinstance(first_stage, VAEConfig):
        return int(2 ** (len(first_stage.encoder.ch_mult) - 1))
    return 8


def _was_given(config: RunConfig, name: str) -> bool:
    return config.origins.get(f"args.{name}", "default") != "default"


def _check_side(name: str, size: int, multiple: int) -> None:
    if size < multiple or size % multiple:
        nearest = max(1, round(size / multiple)) * multiple
        raise ConfigError(
            f"{size} {name} of pixels are not a multiple of {multiple}",
            where="--size, or args.sampling_image_size (rows, columns)",
            fix=f"use {nearest}",
        )
