"""What a dataset offers to the loader, and what every dataset is told."""

from __future__ import annotations

import random
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from app.data.bad_clip import BadClipError
from app.data.batch import Item
from app.data.object_cache import Prefetcher, ShardCache
from app.data.video.decoder import DecoderOfThread
from app.distributed.mix import mix
from app.errors import CogvxError, ConfigError, DataError
from app.storage.node_disk import node_folder

CROP_KEY = 5  # first key of the random start, beside those of order.py
EXACT, SAT = "exact", "sat"
ERROR, EMPTY = "error", "empty"
START, RANDOM = "start", "random"


class Source(Protocol):
    """Clips by index. Implemented by SFTSource, ShardSource and MapSource (a user's dataset)."""

    @property
    def sample_bytes(self) -> int:
        """Memory of one decoded sample; 0 if unknown."""
        ...

    def __len__(self) -> int:
        """Samples of the dataset."""
        ...

    def shard_sizes(self) -> Sequence[int]:
        """Samples per shard, in the order of the indexes; a folder is one shard."""
        ...

    def fingerprint(self) -> str:
        """sha256 of what the order and the content of the samples follow from."""
        ...

    def read(self, index: int, position: int) -> Item:
        """Sample `index`; `position` keys what is random about it. Called from many threads.

        Raises:
            BadClipError: this sample cannot be used.
            DataError, InputMissingError: its shard cannot.
        """
        ...

    def expect(self, index: int) -> None:
        """One `read` of this index is coming: a chance to fetch its shard."""
        ...

    def release(self, index: int) -> None:
        """One expected `read` of this index will not come."""
        ...

    def close(self) -> None:
        """Give back processes and threads; a running `read` then ends with an error."""
        ...


@dataclass(frozen=True, slots=True)
class SourceSettings:
    """What does not depend on the class of the dataset."""

    seed: int = 0
    frame_rule: str = EXACT  # or SAT
    caption_rule: str = "relative"  # or SAT: how a folder's captions are found and cut
    missing_captions: str = ERROR  # or EMPTY: train on "" where a caption is missing
    temporal_crop: str = START  # or RANDOM: where in a long video the clip begins
    on_changed_shard: str = ERROR  # or "rescan"
    cache_dir: Path = field(default_factory=lambda: node_folder("shards"))
    cache: ShardCache | None = None  # needed for buckets
    prefetcher: Prefetcher | None = None
    decoders: DecoderOfThread = field(default_factory=DecoderOfThread)

    def __post_init__(self) -> None:
        for name, allowed in (
            ("frame_rule", (EXACT, SAT)),
            ("caption_rule", ("relative", SAT)),
            ("missing_captions", (ERROR, EMPTY)),
            ("temporal_crop", (START, RANDOM)),
            ("on_changed_shard", (ERROR, "rescan")),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"{name} is '{getattr(self, name)}'",
                    where=f"data.{name}",
                    mend=f"use {' or '.join(allowed)}",
                )

    def crop(self, position: int) -> random.Random:
        """Where the random start of the sample at `position` comes from."""
        return random.Random(mix(self.seed, CROP_KEY, position))


class MapSource:
    """A user's map-style dataset (`--register`): anything with `len` and indexing by number.

    Its items are upstream's: a dictionary with `mp4` (T, 3, H, W), `txt`, `num_frames`, `fps`.
    It is indexed from several threads at once unless `num_workers` is 0 or 1.
    """

    sample_bytes = 0

    def __init__(self, dataset: Any, name: str) -> None:
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise ConfigError(
                "the dataset cannot be indexed: samples are taken by number",
                where=name,
                mend="offer __len__ and __getitem__ (iterable datasets cannot resume)",
            )
        self._dataset = dataset
        self._name = name

    def __len__(self) -> int:
        return len(self._dataset)

    def shard_sizes(self) -> Sequence[int]:
        return [len(self._dataset)]

    def fingerprint(self) -> str:
        """The dataset's own `fingerprint()` where it has one; else its name and length."""
        own = getattr(self._dataset, "fingerprint", None)
        return str(own()) if callable(own) else f"{self._name}:{len(self._dataset)}"

    def read(self, index: int, position: int) -> Item:
        try:
            item = self._dataset[index]
        except (CogvxError, OSError, MemoryError):
            raise
        except Exception as problem:
            # A dataset of a user may fail in any way; which line did belongs to the report.
            place = traceback.extract_tb(problem.__traceback__)[-1]
            raise BadClipError(
                "dataset_error",
                f"{type(problem).__name__}: {problem} ({place.filename}:{place.lineno})",
                where=f"item {index} of {self._name}",
            ) from problem
        if not isinstance(item, dict) or "mp4" not in item or "txt" not in item:
            raise DataError(
                "an item must be a dictionary with 'mp4' and 'txt'",
                where=f"item {index} of {self._name}",
                mend="see docs/data_format.md, 'A dataset of your own'",
            )
        return {"key": f"{self._name}[{index}]", **item}

    def expect(self, index: int) -> None:
        """Nothing to fetch."""

    def release(self, index: int) -> None:
        """Nothing was fetched."""

    def close(self) -> None:
        close = getattr(self._dataset, "close", None)
        if callable(close):
            close()
