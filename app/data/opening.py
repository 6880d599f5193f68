"""From the configuration to a source, and to a loader of one rank's batches."""

from __future__ import annotations

import hashlib
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.config.schema.data import DataConfig, OrderConfig, SFTDataConfig, ShardDataConfig
from app.config.schema.run import CompatConfig
from app.config.target import load_class
from app.data.batch import Collate
from app.data.cursor import Cursor
from app.data.loader import JoinedSource, Loader, LoaderSettings
from app.data.order import EpochOrder, MixedOrder, Order, SatOrder
from app.data.settings import settings_from_config, with_cache
from app.data.share import Share
from app.data.source import MapSource, Source, SourceSettings
from app.data.sources.sft import SFTSource
from app.data.sources.webdataset import ShardSource
from app.errors import ConfigError
from app.storage.opening import is_remote

SHUFFLE_BUFFER = 1000  # upstream's default, which says nothing
# Takes the place of an opened source: (source, its path, settings of the run's sources).
Replace = Callable[[Source, str, SourceSettings], Source]
CreateDataset = Callable[..., Any]  # upstream's create_dataset_function(path, args, **params)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderRequest:
    """What one loader is for: training, or validation.

    `weights`: how often each path counts; None or equal ones: every sample once per epoch.
    `create`: the caller's create_dataset_function(path, args), instead of the configured class.
    `replace`: what reads the samples instead of each source (the latent cache); None: itself.
    """

    paths: Sequence[str]
    share: Share
    seed: int
    compat: CompatConfig = field(default_factory=CompatConfig)
    weights: Sequence[int] | None = None
    args: Namespace | None = None
    create: CreateDataset | None = None
    replace: Replace | None = None
    collate_fn: Collate | None = None


def open_loader(config: DataConfig, request: LoaderRequest) -> Loader:
    """List, check and order the data of one rank; nothing is decoded yet.

    Raises:
        ConfigError: paths, weights or sizes that cannot be.
        InputMissingError: a path, shard or folder that is not there.
        DataError: a changed or damaged shard, missing captions, no sample.
    """
    if not request.paths:
        raise ConfigError("no data is named", where="args.train_data", mend="name a path")
    settings = settings_from_config(config, request.compat, request.seed)
    places = [url for path in request.paths for url in _urls(path, config)]
    if any(is_remote(url) for url in (*places, config.latent_cache or "")):
        settings = with_cache(settings, config.cache_gib, config.prefetch_gib)
    sources = [open_source(config, path, settings, request) for path in request.paths]
    if request.replace is not None:
        pairs = zip(sources, request.paths, strict=True)
        sources = [request.replace(source, path, settings) for source, path in pairs]
    order, identity = _ordered(config, request, sources)
    share = request.share
    if identity.order == "sat":
        share = Share(
            share.rank, share.world_size, share.micro_batch, share.accumulation, interleaved=True
        )
    return Loader(
        _Owner(sources, settings),
        order,
        share,
        settings=LoaderSettings(config.num_workers, config.prefetch_factor, config.quarantine),
        identity=identity,
        collate_fn=request.collate_fn,
    )


def open_source(
    config: DataConfig, path: str, settings: SourceSettings, request: LoaderRequest
) -> Source:
    """One dataset: ours, or a registered class or function behind MapSource."""
    if request.create is not None:
        return MapSource(request.create(path, request.args), config.target)
    if isinstance(config.params, SFTDataConfig):
        return SFTSource(config.params, path, settings)
    if isinstance(config.params, ShardDataConfig):
        return ShardSource(config.params, path, settings)
    dataset_class = load_class(config.implementation, "data.target")
    create = getattr(dataset_class, "create_dataset_function", None)
    if create is None:
        raise ConfigError(
            "the registered class has no create_dataset_function(path, args, **params)",
            where=config.implementation,
            mend="add this classmethod: docs/data_format.md, 'A dataset of your own'",
        )
    return MapSource(create(path, request.args, **config.params), config.target)


class _Owner(JoinedSource):
    """The joined sources, which also ends what they share."""

    def __init__(self, sources: Sequence[Source], settings: SourceSettings) -> None:
        super().__init__(sources)
        self._settings = settings

    def close(self) -> None:
        super().close()
        self._settings.decoders.close()
        if self._settings.prefetcher is not None:
            self._settings.prefetcher.close()
        if self._settings.cache is not None:
            self._settings.cache.close()


def _ordered(
    config: DataConfig, request: LoaderRequest, sources: Sequence[Source]
) -> tuple[Order, Cursor]:
    """The order of the samples, and the cursor at step 0."""
    weights = request.weights
    if weights is not None and len(weights) != len(sources):
        raise ConfigError(
            f"{len(weights)} weights for {len(sources)} datasets",
            where="args.train_data_weights",
            mend="give one weight per entry of train_data",
        )
    lengths = [len(source) for source in sources]
    batch, seed = request.share.batch, request.seed
    fingerprints = "\n".join(source.fingerprint() for source in sources)
    sha256 = hashlib.sha256(fingerprints.encode()).hexdigest()
    lanes, window = _lanes_and_window(config)
    if request.compat.order == "sat":
        sat = SatOrder(lengths, list(weights) if weights is not None else None)
        shares = tuple(weights or ())
        # This order knows neither seed nor lanes: they must not forbid a resume.
        return sat, Cursor(0, 0, 1, 1, batch, sha256, order="sat", shares=shares)
    counts = [list(source.shard_sizes()) for source in sources]
    if weights is None or len(set(weights)) == 1:
        together = [size for part in counts for size in part]
        plain = EpochOrder(together, seed=seed, batch=batch, lanes=lanes, window=window)
        return plain, Cursor(0, seed, plain.lanes, window, batch, sha256)
    # A weight is how often a dataset counts, so its share is weight times length, as upstream's.
    wished = [weight * length for weight, length in zip(weights, lengths, strict=True)]
    mixed = MixedOrder(counts, wished, seed=seed, batch=batch, lanes=lanes, window=window)
    return mixed, Cursor(0, seed, mixed.lanes, window, batch, sha256, shares=tuple(mixed.quotas))


def _lanes_and_window(config: DataConfig) -> tuple[int, int]:
    """`data.order`; upstream's shuffle_buffer stands for the window where only it is given."""
    window = config.order.window
    if isinstance(config.params, ShardDataConfig) and window == OrderConfig().window:
        shuffle_buffer = config.params.shuffle_buffer
        window = window if shuffle_buffer == SHUFFLE_BUFFER else shuffle_buffer
    return config.order.lanes, window


def _urls(path: str, config: DataConfig) -> list[str]:
    """Every place that a path may name, to know whether a bucket is among them."""
    extra = config.params.include_dirs or "" if isinstance(config.params, ShardDataConfig) else ""
    return [part.strip() for part in f"{path.lstrip(';')}::{extra}".replace(",", "::").split("::")]
