"""Encode clips and captions once, for every training that uses them: `cogvx encode`.

Threads read, hash and decode; this thread has the VAE and the text encoder; other threads write.
An existing entry is not computed again, and the networks are loaded when the first one is missing.
Entries are named by their content, so several jobs may fill one cache concurrently.

Axes: B batch (1 here), T frames, C channels, H rows, W columns.
"""

from __future__ import annotations

import logging
import secrets
import tempfile
import time
from argparse import Namespace
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import torch

from app.config.schema.encoders import VAEConfig
from app.config.schema.model import ModelConfig
from app.config.schema.run import EncodableRun
from app.data.bad_clip import CLOSED, BadClipError
from app.data.batch import Item
from app.data.latent_cache import (
    EncodePart,
    LatentCache,
    LatentEntry,
    Listing,
    SampleRecord,
    shard_key,
)
from app.data.latent_table import LatentTable
from app.data.opening import LoaderRequest, open_dataset
from app.data.order.choice import assigned
from app.data.order.share import Share
from app.data.sources.latents import content_of, coverage
from app.data.sources.protocols import Source
from app.data.sources.settings import settings_from_config, with_cache
from app.data.video.transforms import scale_pixels
from app.errors import ConfigError, DataError
from app.run.build import DTYPES, LoadOptions, build_text_encoder, build_vae
from app.run.encode.settings import cache_settings
from app.storage.node_disk import node_folder
from app.storage.opening import open_storage

log = logging.getLogger(__name__)

WRITERS = 4  # threads that write entries
MOST_UNWRITTEN = 8  # entries that wait for them
LOG_INTERVAL_S = 30.0

Progress = Callable[[int, int, int], None]  # (clips done, clips in all, clips computed)


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeRequest:
    """What to encode, and the destination.

    Attributes:
        out: root of the cache, a folder or s3:// prefix.
        part: this job's share of the clips.
        workers: threads that read and decode.
    """

    out: str
    part: EncodePart = field(default_factory=EncodePart)
    workers: int = 2


@dataclass(slots=True)
class EncodeReport:
    """What was done; `computed` and `found` are clips, `bad` the ones that cannot be used."""

    url: str
    samples: int = 0
    computed: int = 0
    found: int = 0
    bad: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Dataset:
    """One entry of train_data or valid_data, opened, with what earlier jobs recorded about it.

    `damaged` are entries of another size than was recorded;
    `sizeless` are the samples that fit no bucket: the size of their video cannot be read.
    """

    path: str
    source: Source
    known: LatentTable
    damaged: frozenset[str]
    sizeless: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Prepared:
    """A sample that was read: its record, and the decoded clip if its entry is missing."""

    record: SampleRecord
    item: Item | None = None


class ClipEncoder:
    """The VAE and the text encoder, loaded when the first clip needs them."""

    def __init__(self, model: ModelConfig, options: LoadOptions) -> None:
        self._model = _unshared(model)
        self._options = options
        self._vae: Any = None
        self._text_encoder: Any = None

    @torch.no_grad()
    def encode(self, item: Item) -> LatentEntry:
        """The entry of one clip.

        Raises:
            ConfigError: a registered VAE whose posterior has no moments.
            DataError: a sample without pixels.
        """
        if self._vae is None:
            self._vae = build_vae(self._model, self._options)
            self._text_encoder = build_text_encoder(self._model.conditioner, self._options)
        video = item[self._model.input_key]
        pixels = scale_pixels(video.to(self._options.device), self._options.dtype)[None]
        posterior = self._vae.encode(pixels, self._model.encode_batch)
        if not hasattr(posterior, "mean") or not hasattr(posterior, "logvar"):
            raise ConfigError(
                "the posterior of the registered VAE has no mean and logvar",
                where="model.first_stage_config.target",
                fix="add both, (B, t, C, h, w), or train without latent_cache",
            )
        caption = str(item["txt"])
        first_frame = video[:1].cpu() if self._model.noised_image_input else None
        return LatentEntry(
            mean=posterior.mean[0].cpu(),
            logvar=posterior.logvar[0].cpu(),
            text=self._text_encoder.encode([caption])[0].cpu(),
            first_frame=first_frame,
            caption=caption,
            num_frames=int(item.get("num_frames", len(video))),
            fps=float(item.get("fps", 0.0)),
        )


def encode(
    config: EncodableRun,
    request: EncodeRequest,
    progress: Progress = lambda done, total, computed: None,
    args: Namespace | None = None,
) -> EncodeReport:
    """Encode every clip of the training and validation data that is not in the cache.

    Args:
        config: as training has it.
        request: see EncodeRequest.
        progress: called after every clip.
        args: passed to a registered dataset.

    Raises:
        ConfigError: clips of this configuration cannot be encoded once.
        DataError: no clip can be used.
        CogvxError: data, weights or the cache cannot be used.
    """
    began = time.monotonic()
    root = open_storage(request.out)
    settings = cache_settings(config, root, keeps=True)
    cache = LatentCache(lambda name: open_storage(f"{request.out.rstrip('/')}/{name}"), settings)
    cache.begin()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = DTYPES[config.training.precision]
    options = LoadOptions(device, dtype, node_folder("weights"))
    with ExitStack() as stack:
        present = cache.present()
        datasets = _datasets(config, cache, present, args, stack)
        job = _Job(cache, request, ClipEncoder(config.model, options), datasets, present)
        job.run(progress)
    job.report.seconds = round(time.monotonic() - began, 3)
    if job.report.samples and len(job.report.bad) == job.report.samples:
        first = job.report.bad[0]
        raise DataError(
            f"none of {job.report.samples} clips can be used: {first['reason']}, {first['detail']}",
            where=first["key"],
            fix="check the path and what `cogvx data check` says of its videos",
        )
    return job.report


class _Job:
    """One call of `encode`: its clips, in threads."""

    def __init__(
        self,
        cache: LatentCache,
        request: EncodeRequest,
        encoder: ClipEncoder,
        datasets: Sequence[Dataset],
        present: Listing,
    ) -> None:
        self.report = EncodeReport(url=cache.url)
        self._cache = cache
        self._request = request
        self._encoder = encoder
        self._datasets = datasets
        self._listed = present
        self._added: dict[str, int] = {}  # entries that this job made or found since, with sizes
        self._damaged = {key for data in datasets for key in data.damaged}
        for key in self._damaged:
            log.warning("an entry is truncated, it is encoded again", extra={"entry": key})
        self._ends = list(accumulate(len(data.source) for data in datasets))
        self._part = request.part.of(self._ends[-1])
        self._records: dict[str, list[SampleRecord]] = {}
        self._unwritten: deque[Future[None]] = deque()
        self._logged_s = time.monotonic()

    def run(self, progress: Progress) -> None:
        """Encode this job's part, then publish its lists."""
        self.report.samples = len(self._part)
        with (
            tempfile.TemporaryDirectory(prefix="cogvx-encode-") as scratch,
            ThreadPoolExecutor(WRITERS) as writers,
        ):
            try:
                with closing(self._prepared()) as results:
                    for done, (dataset, prepared) in enumerate(results, start=1):
                        record = self._finished(prepared, writers, Path(scratch))
                        self._records.setdefault(dataset.path, []).append(record)
                        self._report_progress(done, progress)
                for future in self._unwritten:
                    future.result()
            finally:
                for future in self._unwritten:
                    future.cancel()
        for path, records in self._records.items():
            records.sort(key=lambda record: record.name)
            self._cache.write_records(path, self._request.part, records)

    def _work(self) -> Iterator[tuple[Dataset, int]]:
        """This part's samples, from a random one on, so that two jobs share the work."""
        own = self._part
        start = secrets.randbelow(len(own)) if own else 0
        for number in chain(own[start:], own[:start]):
            which = bisect_right(self._ends, number)
            dataset = self._datasets[which]
            yield dataset, number - (self._ends[which] - len(dataset.source))

    def _prepared(self) -> Generator[tuple[Dataset, Prepared], None, None]:
        """Every sample of the work in turn, read ahead by threads."""
        ahead: deque[tuple[Dataset, Future[Prepared]]] = deque()

        def oldest() -> tuple[Dataset, Prepared]:
            dataset, future = ahead.popleft()
            return dataset, future.result()

        with ThreadPoolExecutor(self._request.workers) as readers:
            try:
                for dataset, index in self._work():
                    ahead.append((dataset, readers.submit(self._prepare, dataset, index)))
                    if len(ahead) == self._request.workers + 2:
                        yield oldest()
                while ahead:
                    yield oldest()
            finally:
                for _, future in ahead:
                    future.cancel()

    def _prepare(self, dataset: Dataset, index: int) -> Prepared:
        """Find the key of a sample's entry, and decode the clip if there is no such entry."""
        source = dataset.source
        name, identity = source.name(index), source.identity(index)
        if index in dataset.sizeless:
            why = (name, "undecodable", "its size cannot be read, so it has no bucket")
            return Prepared(SampleRecord(name, identity, "", 0, *why))
        known = dataset.known.record(index, name, identity)
        if known.key and self._size(known.key) is not None:
            return Prepared(known)
        try:
            return self._read(source, index, SampleRecord(name, identity))
        except BadClipError as problem:
            if problem.reason == CLOSED:
                raise
            found = (problem.where, problem.reason, problem.detail, problem.sha256)
            return Prepared(SampleRecord(name, identity, "", 0, *found))

    def _read(self, source: Source, index: int, record: SampleRecord) -> Prepared:
        """Key a sample by its bytes; once more if the operating system could not read them."""
        for reads_left in (1, 0):
            try:
                content = content_of(source, index)
                key = self._cache.key_of(content.video_sha256, content.caption)
                size = self._size(key)
                keyed = replace(record, key=key, size_bytes=size or 0, shown=content.shown)
                if size is not None:
                    return Prepared(keyed)
                return Prepared(keyed, content.item or source.read(index, index))
            except OSError as problem:
                if not reads_left:
                    raise BadClipError(
                        "unreadable", f"{problem}, twice", where=record.name
                    ) from problem
                log.warning("reading again", extra={"clip": record.name, "problem": str(problem)})
        raise AssertionError("unreachable")

    def _finished(
        self, prepared: Prepared, writers: ThreadPoolExecutor, scratch: Path
    ) -> SampleRecord:
        """The record with its size; computes the entry unless another job has, meanwhile."""
        record = prepared.record
        if record.reason:
            log.warning("clip cannot be used", extra={"clip": record.shown, "why": record.reason})
            self.report.bad.append(
                {"key": record.shown, "reason": record.reason, "detail": record.detail}
            )
            return record
        size = self._size(record.key)
        if size is None and record.key not in self._damaged:
            size = self._cache.size_of(record.key)
        if size is not None or prepared.item is None:
            self.report.found += 1
            self._added[record.key] = size = size or record.size_bytes
        else:
            data = self._encoder.encode(prepared.item).to_bytes(record.key)
            self._write(record.key, data, writers, scratch)
            self.report.computed += 1
            self._added[record.key] = size = len(data)
        return replace(record, size_bytes=size)

    def _size(self, key: str) -> int | None:
        """Bytes of an entry that can be used; None when it is not known to be there."""
        listed = None if key in self._damaged else self._listed.size_of(key)
        return self._added.get(key, listed)

    def _write(self, key: str, data: bytes, writers: ThreadPoolExecutor, scratch: Path) -> None:
        """Have an entry written; waits when too many are queued."""

        def upload() -> None:
            path = scratch / key
            path.write_bytes(data)
            self._cache.storage.upload(path, shard_key(key))
            path.unlink()

        self._unwritten.append(writers.submit(upload))
        while len(self._unwritten) > MOST_UNWRITTEN:
            self._unwritten.popleft().result()

    def _report_progress(self, done: int, progress: Progress) -> None:
        report = self.report
        progress(done, report.samples, report.computed)
        if time.monotonic() - self._logged_s > LOG_INTERVAL_S:
            self._logged_s = time.monotonic()
            log.info(
                "encoding",
                extra={"clips": done, "of": report.samples, "computed": report.computed},
            )


def _unshared(model: ModelConfig) -> ModelConfig:
    """The model with a VAE that does not share clips between ranks: a job is one process."""
    component = model.first_stage
    if not isinstance(component.params, VAEConfig):
        return model
    params = replace(component.params, cp_size=1)
    return replace(model, first_stage=replace(component, params=params))


def _datasets(
    config: EncodableRun,
    cache: LatentCache,
    present: Listing,
    args: Namespace | None,
    stack: ExitStack,
) -> list[Dataset]:
    """Training and validation data, each path once, closed with `stack`."""
    seed = config.training.seed
    settings = settings_from_config(config.data, config.compat, seed)
    settings = with_cache(settings, config.data.cache_gib, config.data.prefetch_gib)
    for resource in (settings.cache, settings.prefetcher, settings.decoders):
        if resource is not None:
            stack.callback(resource.close)
    found = []
    for path in dict.fromkeys((*config.data.train, *config.data.valid)):
        request = LoaderRequest(
            paths=[path], share=Share(0, 1, 1), seed=seed, compat=config.compat, args=args
        )
        source = open_dataset(config.data, path, settings, request)
        stack.callback(source.close)
        sizeless: frozenset[int] = frozenset()
        if config.data.buckets:
            buckets = assigned([source], config.data.buckets)  # also sets them in the source
            sizeless = frozenset(int(index) for index in (buckets < 0).nonzero()[0])
        covered = coverage(source, cache.records(path), present)
        found.append(Dataset(path, source, covered.rows.finished(), covered.damaged, sizeless))
    if not found:
        raise ConfigError("no data is given", where="args.train_data", fix="give folders or shards")
    return found
