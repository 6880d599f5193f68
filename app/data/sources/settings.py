"""Settings of the sources, from the configuration or from upstream's Namespace."""

from __future__ import annotations

import random
from argparse import Namespace
from dataclasses import dataclass, field, replace
from pathlib import Path

from app.config.argument import arguments_of, default_of
from app.config.schema.data import DataConfig
from app.config.schema.run import CompatConfig, compat_of
from app.config.sections.data import cache_keys
from app.data.object_cache import ObjectCache, Prefetcher
from app.data.video.decoder import DecodeLimits, DecoderOfThread
from app.distributed.mix import mix
from app.distributed.shared_work import SharedWork
from app.errors import ConfigError
from app.storage.node_disk import node_folder

GIB = 1 << 30
CROP_KEY = 5  # first key of the random start, beside those of order.py
EXACT, SAT = "exact", "sat"
ERROR, EMPTY = "error", "empty"
START, RANDOM = "start", "random"


def settings_from_config(config: DataConfig, compat: CompatConfig, seed: int) -> SourceSettings:
    """Settings of the sources of one run, without a cache: that is for runs that read a bucket."""
    sat = compat.mode == SAT
    return SourceSettings(
        seed=seed,
        frame_rule=compat.frame_rule,
        caption_rule=SAT if sat else "relative",
        missing_captions=EMPTY if sat else config.missing_captions,
        caption_prefix=config.caption_prefix,
        temporal_crop=config.temporal_crop,
        on_changed_shard=config.on_changed_shard,
        cache_dir=Path(config.cache_dir) if config.cache_dir else node_folder("shards"),
        decoders=DecoderOfThread(
            DecodeLimits(config.decode_deadline_s, int(config.decode_memory_gib * GIB)),
            upstream=compat.frame_rule == SAT,
        ),
    )


def with_cache(settings: SourceSettings, cache_gib: float, prefetch_gib: float) -> SourceSettings:
    """The settings with a shard cache and a prefetcher: for runs that read a bucket."""
    cache = ObjectCache(settings.cache_dir, int(cache_gib * GIB))
    prefetcher = Prefetcher(cache, int(prefetch_gib * GIB))
    return replace(settings, cache=cache, prefetcher=prefetcher)


def settings_from_args(args: Namespace) -> SourceSettings:
    """Settings for `create_dataset_function`, where only upstream's Namespace is known.

    Reads `seed`, the arguments of compatibility and `data_config`; what is not there has its
    default.
    """
    config = DataConfig(
        target="", implementation="", params={}, **cache_keys(getattr(args, "data_config", None))
    )
    given = {row.name: getattr(args, row.name, None) for _, row in arguments_of(CompatConfig)}
    settings = settings_from_config(config, compat_of(given), int(getattr(args, "seed", 0) or 0))
    return with_cache(settings, config.cache_gib, config.prefetch_gib)


def prefixed(prefix: str, caption: str) -> str:
    """`prefix` before `caption`, parted by one blank; either may be empty."""
    return " ".join(part for part in (prefix.strip(), caption) if part)


@dataclass(frozen=True, slots=True)
class SourceSettings:
    """What does not depend on the class of the dataset."""

    seed: int = 0
    frame_rule: str = default_of(CompatConfig, "frame_rule")  # EXACT or SAT
    caption_rule: str = "relative"  # or SAT: how a folder's captions are found and cut
    # ERROR, or EMPTY: train on "" where a caption is missing
    missing_captions: str = default_of(DataConfig, "missing_captions")
    caption_prefix: str = default_of(DataConfig, "caption_prefix")  # before every caption
    # START or RANDOM: where in a long video the clip begins
    temporal_crop: str = default_of(DataConfig, "temporal_crop")
    on_changed_shard: str = default_of(DataConfig, "on_changed_shard")  # ERROR or "rescan"
    cache_dir: Path = field(default_factory=lambda: node_folder("shards"))
    cache: ObjectCache | None = None  # needed for buckets
    prefetcher: Prefetcher | None = None
    decoders: DecoderOfThread = field(default_factory=DecoderOfThread)
    shared_work: SharedWork = field(default_factory=SharedWork)  # the ranks that open it together

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
                    fix=f"use {' or '.join(allowed)}",
                )

    def prefixed(self, caption: str) -> str:
        """The caption as training uses it: the prefix and one blank before it."""
        return prefixed(self.caption_prefix, caption)

    @property
    def prefix_fact(self) -> tuple[str, ...]:
        """The prefix as a part of a sample's identity; nothing where there is none."""
        return (self.caption_prefix.strip(),) if self.caption_prefix.strip() else ()

    def crop(self, position: int) -> random.Random:
        """Where the random start of the sample at `position` comes from."""
        return random.Random(mix(self.seed, CROP_KEY, position))

    def close(self) -> None:
        """End the decoders, the downloads and this process's part in the cache."""
        self.decoders.close()
        if self.prefetcher is not None:
            self.prefetcher.close()
        if self.cache is not None:
            self.cache.close()
