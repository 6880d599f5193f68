"""The latent cache of a run: found, compared with the configuration, and read by its sources."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from app.config.schema.run import EncodableRun
from app.data.bad_clip import BadClipError
from app.data.latent_cache import (
    FOLDER_NAME,
    SETTINGS_NAME,
    CacheSettings,
    LatentCache,
    SampleRecord,
    damaged,
)
from app.data.sources.latents import Coverage, LatentSource, content_of, coverage
from app.data.sources.protocols import Originals, Source
from app.data.sources.settings import SourceSettings
from app.errors import ConfigError
from app.run.encode.settings import WEIGHTS, cache_settings, described, encode_command
from app.storage.objects import Storage, read_if_present
from app.storage.opening import is_remote, open_storage

log = logging.getLogger(__name__)

NAMES_SHOWN = 5
READERS = 8


@dataclass(frozen=True, slots=True)
class CachedClips:
    """The cache that fits a run.

    Attributes:
        cache: its folder below the root.
        present: entry -> bytes.
        command: makes what is missing.
    """

    cache: LatentCache
    present: Mapping[str, int]
    command: str

    @classmethod
    def of_run(cls, config: EncodableRun) -> CachedClips | None:
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
        present = cache.present()
        log.info("latent cache", extra={"url": cache.url, "entries": len(present)})
        return cls(cache, present, command)

    def cached_source(self, source: Source, path: str, settings: SourceSettings) -> Source:
        """The source with its clips from the cache.

        Raises:
            ConfigError: clips are missing or have changed; names the first ones.
        """
        known = self.cache.records(path)
        found = coverage(source, known, self.present)
        is_local = isinstance(source, Originals) and not is_remote(path)
        if (found.changed or found.missing) and is_local:
            found = self.compared(source, found, damaged(known, self.present))
        if found.changed or found.missing:
            raise self.incomplete(found, path)
        records = [record for record in found.records if record is not None]
        return LatentSource(source, self.cache, records, settings)

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

    def compared(self, source: Source, found: Coverage, cut: Collection[str]) -> Coverage:
        """Look up samples without a record by their content, except for truncated entries.

        A folder that was copied to this node has other times, but the same clips. Only for local
        files: those of a bucket keep their ETags, and would have to be downloaded.
        """
        lost = [index for index, record in enumerate(found.records) if record is None]
        log.info("comparing clips with the latent cache by content", extra={"clips": len(lost)})
        with ThreadPoolExecutor(READERS) as pool:
            answers = pool.map(partial(self._by_content, source), lost)
            pairs = zip(lost, answers, strict=True)
            kept = {index: one for index, one in pairs if one and one.key not in cut}
        names = {source.name(index) for index in kept}
        return Coverage(
            records=tuple(kept.get(i, record) for i, record in enumerate(found.records)),
            changed=tuple(name for name in found.changed if name not in names),
            missing=tuple(name for name in found.missing if name not in names),
        )

    def _by_content(self, source: Source, index: int) -> SampleRecord | None:
        try:
            content = content_of(source, index)
        except BadClipError:
            return None  # `cogvx encode` says what is wrong with it
        key = self.cache.key_of(content.video_sha256, content.caption)
        size = self.present.get(key)
        name, identity = source.name(index), source.identity(index)
        return SampleRecord(name, identity, key, size, content.shown) if size else None

    def incomplete(self, found: Coverage, path: str) -> ConfigError:
        """The error of a cache that lacks clips of a dataset."""
        lacking = len(found.changed) + len(found.missing)
        reasons = []
        if found.changed:
            reasons.append(f"changed since they were encoded: {_names(found.changed)}")
        if found.missing:
            reasons.append(f"not encoded: {_names(found.missing)}")
        return ConfigError(
            f"the latent cache lacks {lacking} of {len(found.records)} clips of {path}: "
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


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
