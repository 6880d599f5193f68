"""The latent cache of a run: found, compared with the configuration, and read by its sources."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from app.config.schema.run import EncodableRun
from app.data.bad_clip import BadClipError
from app.data.latent_cache import (
    FOLDER_NAME,
    SETTINGS_NAME,
    CacheSettings,
    LatentCache,
    Listing,
    SampleRecord,
)
from app.data.latent_table import LatentTable
from app.data.sources.latents import Coverage, LatentSource, content_of, coverage
from app.data.sources.protocols import Originals, Source
from app.data.sources.settings import SourceSettings
from app.errors import ConfigError
from app.run.attempt.node_table import NodePeers, once_per_node
from app.run.encode.settings import WEIGHTS, cache_settings, described, encode_command
from app.storage.objects import Storage, read_if_present
from app.storage.opening import is_remote, open_storage

log = logging.getLogger(__name__)

NAMES_SHOWN = 5
READERS = 8


@dataclass(slots=True)
class CachedClips:
    """The cache that fits a run.

    Attributes:
        cache: its folder below the root.
        command: makes what is missing.
        peers: the processes of the node; one of them lists and reads for all.
    """

    cache: LatentCache
    command: str
    peers: NodePeers = field(default_factory=NodePeers)
    _listing: Listing | None = None

    @classmethod
    def of_run(cls, config: EncodableRun, peers: NodePeers | None = None) -> CachedClips | None:
        """The cache that `latent_cache` names; None when the run encodes live.

        Raises:
            ConfigError: there is none, or none that fits: says what differs and how to make one.
        """
        url = config.data.latent_cache
        if url is None:
            return None
        url = url.rstrip("/")
        root = open_storage(url)
        command = encode_command(config, url)
        settings = fitting(root, cache_settings(config, root), command)
        cache = LatentCache(lambda name: open_storage(f"{url}/{name}"), settings)
        return cls(cache, command, peers or NodePeers())

    @property
    def present(self) -> Listing:
        """Entries that are there, listed at the first use."""
        if self._listing is None:
            self._listing = self.cache.present()
            entries = len(self._listing)
            log.info("latent cache", extra={"url": self.cache.url, "entries": entries})
        return self._listing

    def forget_listing(self) -> None:
        """All sources are open: give back its memory."""
        self._listing = None

    def cached_source(self, source: Source, path: str, settings: SourceSettings) -> Source:
        """The source with its clips from the cache; all ranks of the job call this together.

        Raises:
            ConfigError: clips are missing or have changed; names the first ones.
        """
        table = once_per_node(
            self.peers, settings.cache_dir, source, lambda: self._table(source, path)
        )
        return LatentSource(source, self.cache, table, settings)

    def _table(self, source: Source, path: str) -> LatentTable:
        """Entry of each sample.

        Raises:
            ConfigError: clips are missing or have changed; names the first ones.
        """
        found = coverage(source, self.cache.records(path), self.present)
        is_local = isinstance(source, Originals) and not is_remote(path)
        if (len(found.changed) or len(found.missing)) and is_local:
            found = self.compared(source, found)
        if len(found.changed) or len(found.missing):
            raise self.incomplete(source, found, path)
        return found.rows.finished()

    def cached_or_live_source(self, source: Source, path: str, settings: SourceSettings) -> Source:
        """As `cached_source`, but a source that the cache lacks is encoded live, with a warning.

        For validation, whose clips may be encoded again each time.
        """
        try:
            return self.cached_source(source, path, settings)
        except ConfigError as problem:
            log.warning(
                "validation clips are encoded live: the VAE and the text encoder are loaded for "
                "each validation",
                extra={"why": problem.what, "fix": problem.fix},
            )
            return source

    def compared(self, source: Source, found: Coverage) -> Coverage:
        """Look up samples without a record by their content, except for truncated entries.

        A folder that was copied to this node has other times, but the same clips. Only for local
        files: those of a bucket keep their ETags, and would have to be downloaded.
        """
        lost = np.sort(np.concatenate([found.changed, found.missing]))
        log.info("comparing clips with the latent cache by content", extra={"clips": len(lost)})
        kept = []
        with ThreadPoolExecutor(READERS) as pool:
            answers = pool.map(partial(self._by_content, source), lost.tolist())
            for index, record in zip(lost.tolist(), answers, strict=True):
                if record is not None and record.key not in found.damaged:
                    found.rows.put(np.array([index]), [record])
                    kept.append(index)
        return replace(
            found,
            changed=np.setdiff1d(found.changed, kept),
            missing=np.setdiff1d(found.missing, kept),
        )

    def _by_content(self, source: Source, index: int) -> SampleRecord | None:
        try:
            content = content_of(source, index)
        except BadClipError:
            return None  # `cogvx encode` says what is wrong with it
        key = self.cache.key_of(content.video_sha256, content.caption)
        size = self.present.size_of(key)
        name, identity = source.name(index), source.identity(index)
        return SampleRecord(name, identity, key, size, content.shown) if size else None

    def incomplete(self, source: Source, found: Coverage, path: str) -> ConfigError:
        """The error of a cache that lacks clips of a dataset."""
        lacking = len(found.changed) + len(found.missing)
        reasons = []
        if len(found.changed):
            reasons.append(f"changed since they were encoded: {_names(source, found.changed)}")
        if len(found.missing):
            reasons.append(f"not encoded: {_names(source, found.missing)}")
        return ConfigError(
            f"the latent cache lacks {lacking} of {len(source)} clips of {path}: "
            + "; ".join(reasons),
            where=self.cache.url,
            fix=f"encode them (what is there is kept): {self.command}",
        )


def fitting(root: Storage, wanted: CacheSettings, command: str) -> CacheSettings:
    """The settings below `root` that are those of the run.

    Missing weights cannot be compared: then the one cache that agrees in everything else is
    used, with a warning.

    Raises:
        ConfigError: none, or several candidates.
    """
    unknown = [name for name in WEIGHTS if wanted.values.get(name) is None]
    if not unknown:
        exact = _read(root, wanted.digest)
        if exact is not None and not exact.differences(wanted):
            return exact
    stored = [_read(root, name) for name in root.folders() if FOLDER_NAME.fullmatch(name)]
    found = [settings for settings in stored if settings is not None]
    if not found:
        raise ConfigError(
            "there is no latent cache here", where=root.url, fix=f"make it: {command}"
        )
    fit = [one for one in found if set(one.differences(wanted)) <= set(unknown)]
    if len(fit) == 1:
        log.warning(
            "missing weights cannot be compared with those of the latent cache",
            extra={"weights": unknown, "cache": fit[0].digest},
        )
        return fit[0]
    if fit:
        raise ConfigError(
            f"{len(fit)} latent caches made with different weights fit, and weights of this run "
            f"are missing: {', '.join(unknown)}",
            where=root.url,
            fix="mount the VAE and the text encoder, or keep one cache in this folder",
        )
    nearest = min(found, key=lambda one: len(one.differences(wanted)))
    raise ConfigError(
        f"the latent cache does not fit this run: {described(nearest.differences(wanted))}",
        where=f"{root.url}/{nearest.digest}",
        fix=f"use the settings it was made with, or encode again: {command}",
    )


def _read(root: Storage, folder: str) -> CacheSettings | None:
    data = read_if_present(root, f"{folder}/{SETTINGS_NAME}")
    return CacheSettings.from_json(data) if data is not None else None


def _names(source: Source, indices: np.ndarray) -> str:
    more = f" and {len(indices) - NAMES_SHOWN} more" if len(indices) > NAMES_SHOWN else ""
    return ", ".join(source.name(index) for index in indices[:NAMES_SHOWN].tolist()) + more
