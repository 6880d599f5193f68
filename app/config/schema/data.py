"""Where clips come from. Key names are upstream's; ours are marked."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from app.config.argument import DATA, argument
from app.config.kinds import integer, optional, sequence, text
from app.errors import ConfigError


def split_shares(
    written: str, *, has_valid: bool, has_test: bool = False
) -> tuple[float, float, float]:
    """The shares, which sum to 1. A part for which data is named gets none, as upstream has it.

    Raises:
        ConfigError: not numbers, or nothing is left for training.
    """
    try:
        numbers = [float(part) for part in written.replace("/", ",").split(",")]
    except ValueError:
        numbers = []
    numbers = [*numbers, 0.0, 0.0][:3] if numbers else []
    if numbers:
        numbers[1] = 0.0 if has_valid else numbers[1]
        numbers[2] = 0.0 if has_test else numbers[2]
    if not numbers or not min(numbers) >= 0 or not 0 < numbers[0] < float("inf"):
        raise ConfigError(
            f"'split' is '{written}'",
            where="args.split",
            fix="give shares, such as 90,5,5 or 1,0,0",
        )
    train, valid, test = (number / sum(numbers) for number in numbers)
    return train, valid, test


_WRITTEN = re.compile(r"(\d+)x(\d+)x(\d+)")
NO_SPLIT = "1,0,0"  # everything is training data
SIDE_STEP_PX = 16  # the VAE shrinks a side by 8, and a patch of the network takes two of those


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """Size of a clip: frames (4k + 1), rows and columns in pixels (multiples of 16)."""

    frames: int
    rows: int
    columns: int

    def __post_init__(self) -> None:
        if self.frames < 1 or self.frames % 4 != 1:
            raise ConfigError(
                f"{self.frames} frames are not 4k + 1",
                where=f"bucket {self}",
                fix=f"use {max(1, self.frames // 4 * 4 + 1)}",
            )
        for side in (self.rows, self.columns):
            if side < SIDE_STEP_PX or side % SIDE_STEP_PX:
                raise ConfigError(
                    f"{side} pixels are not a multiple of {SIDE_STEP_PX}",
                    where=f"bucket {self}",
                    fix=f"use {max(1, round(side / SIDE_STEP_PX)) * SIDE_STEP_PX}",
                )

    def __str__(self) -> str:
        return f"{self.frames}x{self.rows}x{self.columns}"


def parse_bucket(value: object, where: str = "--bucket") -> Bucket:
    """`49x480x720`, or three numbers, to Bucket(49, 480, 720).

    Raises:
        ConfigError: written otherwise, or an invalid size.
    """
    written = "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    match = _WRITTEN.fullmatch(written.strip())
    if match is None:
        raise ConfigError(
            f"'{written}' is not a bucket size",
            where=where,
            fix="write FRAMESxROWSxCOLUMNS: 49x480x720",
        )
    return Bucket(*(int(part) for part in match.groups()))


def check_frame_count(frames: int, *, where: str) -> None:
    """Raise ConfigError unless `frames` is 4k + 1."""
    # The VAE keeps the first frame and packs the rest by four.
    if frames < 1 or frames % 4 != 1:
        raise ConfigError(
            f"{where.rsplit('.', 1)[-1]} is {frames}, which is not 4k + 1",
            where=where,
            fix=f"use {max(1, frames // 4 * 4 + 1)}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SFTDataConfig:
    """`data_video.SFTDataset`: clips of a folder with videos/ and labels/."""

    video_size: tuple[int, int]  # rows, columns, in pixels
    fps: float  # after resampling
    max_num_frames: int
    skip_frms_num: float = 3.0  # frames dropped at both ends, where scene cuts live

    def __post_init__(self) -> None:
        check_frame_count(self.max_num_frames, where="data.params.max_num_frames")


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardDataConfig:
    """`data_video.VideoDataset`: clips of WebDataset tar shards."""

    image_size: tuple[int, int]  # rows, columns, in pixels
    num_frames: int
    fps: float
    skip_frms_num: float = 0.0
    nshards: int | None = None  # use only the first n shards
    seed: int = 1  # dead: the order is keyed by args.seed
    meta_names: tuple[str, ...] = ()
    shuffle_buffer: int = 1000  # mapped to order.window
    include_dirs: str | None = None
    txt_key: str = "caption"

    def __post_init__(self) -> None:
        check_frame_count(self.num_frames, where="data.params.num_frames")


@dataclass(frozen=True, kw_only=True, slots=True)
class OrderConfig:
    """Ours, section `data.order`: the order of samples (docs/data_order.md)."""

    lanes: int = 16
    window: int = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class QuarantineConfig:
    """Ours, section `data.quarantine`: how many bad samples a run accepts."""

    max_share: float = 0.01  # of the samples seen
    after_samples: int = 1000  # the share counts from here on
    first_samples: int = 20  # as many bad ones in a row end the run


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Section `data:` with the paths and loader settings of `args`."""

    target: str  # registry name of the dataset class
    implementation: str
    params: SFTDataConfig | ShardDataConfig | dict[str, object]  # dict: a registered class
    train: tuple[str, ...] = ()  # args.train_data
    valid: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    train_weights: tuple[int, ...] | None = argument(
        optional(sequence(integer(1), single=True)),
        None,
        "how often each entry of train_data counts",
        group=DATA,
        name="train_data_weights",
    )
    split: str = NO_SPLIT  # args.split where it is given
    num_workers: int = argument(
        integer(0),
        1,
        "decoder processes of each trainer process",
        group=DATA,
        unit="decoder processes",
    )
    prefetch_factor: int = argument(
        integer(1), 4, "samples decoded ahead", group=DATA, unit="samples per worker"
    )
    latent_cache: str | None = argument(
        optional(text()),
        None,
        "folder or s3:// prefix that cogvx encode wrote: train from encoded clips, without the VAE "
        "and T5",
        group=DATA,
        ours=True,
    )
    cache_dir: str | None = None  # ours: shard cache; None: on the node's disk
    cache_gib: float = 20.0  # ours
    prefetch_gib: float = 4.0  # ours: shards downloaded ahead, per rank
    prefetch_s: float = 120.0  # ours: seconds of training that shards are downloaded ahead
    missing_captions: str = "error"  # ours: or "empty", which trains on ""
    caption_prefix: str = ""  # ours: a trigger word before every caption, parted by a blank
    temporal_crop: str = "start"  # ours: or "random", keyed by the position in the order
    on_changed_shard: str = "error"  # ours: or "rescan"
    decode_deadline_s: float = 5.0  # ours: of a small clip; large ones get more
    decode_memory_gib: float = 3.0  # ours: address space of a decoder process
    order: OrderConfig = field(default_factory=OrderConfig)
    quarantine: QuarantineConfig = field(default_factory=QuarantineConfig)
    buckets: tuple[Bucket, ...] = ()  # ours: several clip sizes; none: the one of `params`
    bucket_batch: str = "fixed"  # ours: or "cost": batches of about the same time

    @property
    def clip_sizes(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of the clips, in pixels; empty where a registered class knows them."""
        if self.buckets:
            return tuple((bucket.rows, bucket.columns) for bucket in self.buckets)
        match self.params:
            case SFTDataConfig(video_size=(rows, columns)):
                return ((rows, columns),)
            case ShardDataConfig(image_size=(rows, columns)):
                return ((rows, columns),)
        return ()
