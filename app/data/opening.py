"""From the configuration to a source, and to a loader of one rank's batches."""

from __future__ import annotations

import inspect
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from app.config.schema.data import Bucket, DataConfig, OrderConfig, SFTDataConfig, ShardDataConfig
from app.config.schema.run import CompatConfig
from app.config.target import load_class
from app.data.batch import Collate
from app.data.loader import Loader, LoaderSettings
from app.data.names import checked_address
from app.data.order.choice import OrderRequest, ordered
from app.data.order.share import Share
from app.data.quarantine import check_names
from app.data.sources.protocols import Source
from app.data.sources.registered import MapSource
from app.data.sources.settings import SourceSettings, settings_from_config, with_cache
from app.data.sources.sft import SFTSource
from app.data.sources.views import JoinedSource, part_of
from app.data.sources.webdataset import ShardSource
from app.distributed.shared_work import SharedWork
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
    `split`, `part`: shares of training, validation and test data, and which of them is loaded.
    `cost`: modelled time of one clip of a bucket, for `data.bucket_batch: cost`.
    `shared_work`: the ranks that open it together, so that one lists for all.
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
    split: Sequence[float] = (1.0, 0.0, 0.0)
    part: str = "train"
    cost: Callable[[Bucket], float] | None = None
    shared_work: SharedWork = field(default_factory=SharedWork)


def open_loader(config: DataConfig, request: LoaderRequest) -> Loader:
    """List, check and order the data of one rank; nothing is decoded yet.

    Raises:
        ConfigError: paths, weights or sizes that cannot be.
        InputMissingError: a path, shard or folder that is not there.
        DataError: a changed or damaged shard, missing captions, no sample.
    """
    if not request.paths:
        raise ConfigError("no data is named", where="args.train_data", fix="name a path")
    settings = settings_from_config(config, request.compat, request.seed)
    settings = replace(settings, shared_work=request.shared_work)
    places = [url for path in request.paths for url in _urls(path, config)]
    if any(is_remote(url) for url in (*places, config.latent_cache or "")):
        settings = with_cache(settings, config.cache_gib, config.prefetch_gib)
    sources = [open_dataset(config, path, settings, request) for path in request.paths]
    if request.replace is not None:
        pairs = zip(sources, request.paths, strict=True)
        sources = [request.replace(source, path, settings) for source, path in pairs]
    parts = zip(sources, request.paths, strict=True)
    sources = [part_of(source, request.split, request.part, path) for source, path in parts]
    found = ordered(sources, _order_request(config, request))
    return Loader(
        JoinedSource(sources, settings.close),
        found.order,
        found.share,
        settings=LoaderSettings(
            num_workers=config.num_workers,
            prefetch_factor=config.prefetch_factor,
            prefetch_s=config.prefetch_s,
            quarantine=config.quarantine,
        ),
        identity=found.identity,
        collate_fn=request.collate_fn,
    )


def open_dataset(
    config: DataConfig, path: str, settings: SourceSettings, request: LoaderRequest
) -> Source:
    """One dataset: ours, or a registered class or function behind MapSource."""
    checked_address(path, "args.train_data or args.valid_data")
    if request.create is not None:
        return MapSource(request.create(path, request.args), config.target, config.caption_prefix)
    if isinstance(config.params, SFTDataConfig):
        source = SFTSource(config.params, path, settings)
        check_names(source.left_out(), len(source), path, config.quarantine)
        return source
    if isinstance(config.params, ShardDataConfig):
        return ShardSource(config.params, path, settings)
    dataset_class = load_class(config.implementation, "data.target")
    create = getattr(dataset_class, "create_dataset_function", None)
    if create is None:
        raise ConfigError(
            "the registered class has no create_dataset_function(path, args, **params)",
            where=config.implementation,
            fix="add this classmethod: docs/data_format.md, 'A dataset of your own'",
        )
    try:
        inspect.signature(create).bind(path, request.args, **config.params)
    except TypeError as error:
        raise ConfigError(
            f"create_dataset_function cannot be called with data.params: {error}",
            where=config.implementation,
            fix="accept **params: they hold the keys of every file given to --base",
        ) from error
    dataset = create(path, request.args, **config.params)
    return MapSource(dataset, config.target, config.caption_prefix)


def _order_request(config: DataConfig, request: LoaderRequest) -> OrderRequest:
    lanes, window = _lanes_and_window(config)
    by_cost = config.bucket_batch == "cost"
    if by_cost and config.buckets and request.cost is None:
        raise ConfigError(
            "the time of a clip is not known for this network",
            where="data.bucket_batch: cost",
            fix="use bucket_batch: fixed",
        )
    return OrderRequest(
        share=request.share,
        seed=request.seed,
        lanes=lanes,
        window=window,
        kind=request.compat.order,
        weights=request.weights,
        buckets=config.buckets,
        cost=request.cost if by_cost else None,
    )


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
