"""The captions of a folder's videos: one text file each, or tables for many of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

from app.data.bad_clip import BadClipError
from app.data.names import normal_form, shown
from app.data.shards.captions import field_text
from app.data.sources.caption_tables import Row, by_video, caption_rows
from app.data.sources.folder import label_key
from app.data.sources.protocols import object_version
from app.data.sources.settings import EMPTY, SAT, SourceSettings
from app.data.sources.video_source import READERS
from app.data.video.clip import caption_text, checked_caption
from app.errors import DataError
from app.storage.objects import Entry, ObjectMissingError, Storage
from app.storage.opening import is_remote

log = logging.getLogger(__name__)

BLANK_BYTES = 16  # a caption file this small may be blank: read before the start
NAMES_SHOWN = 5
TWO_CAPTIONS = "two_captions"
ALLOW_EMPTY = "set data.missing_captions: empty to train on ''"


class CaptionFiles:
    """The caption of each video, by one of two rules.

    `relative`: the file at the same path with the last folder `videos` named `labels`, else
    beside the video; the whole text. Or a row of a table (caption_tables.py). Two that differ
    are a fault. `sat`: upstream's text replacement in the full path, also inside other names; the
    first line; "" where the file is missing.
    """

    def __init__(
        self, storage: Storage, entries: Mapping[str, Entry], settings: SourceSettings
    ) -> None:
        self._storage = storage
        self._root = storage.url
        self._entries = entries
        self._sat = settings.caption_rule == SAT
        self._may_be_missing = self._sat or settings.missing_captions == EMPTY
        # Labels that may be written in another normal form than their videos.
        self._by_form = {normal_form(key): key for key in entries if not key.isascii()}

    def check(self, keys: Sequence[str], allow_empty: str = ALLOW_EMPTY) -> None:
        """Find missing, blank and contradicting captions before the run starts.

        Args:
            keys: of the videos.
            allow_empty: how to train without captions, for the message.

        Raises:
            DataError: with the count and the first names, unless they may be missing; or a table
                that cannot be read.
        """
        self._check_conflicts(keys)
        if self.lost_rows:
            lost = [f"{shown(row.video)} ({row.where})" for row in self.lost_rows]
            log.warning("%d captions have no video: %s", len(lost), _first(lost))
        if self._may_be_missing and not self._sat:
            return
        with ThreadPoolExecutor(READERS) as pool:
            problems = [p for p in pool.map(self._missing, keys) if p is not None]
        if problems:
            raise DataError(
                f"{len(problems)} of {len(keys)} videos have no caption: {_first(problems)}",
                where=self._root,
                fix=f"write the captions, or {allow_empty}",
            )

    def read(self, key: str) -> str:
        """The caption of a video.

        Raises:
            BadClipError: missing, blank, too long, not UTF-8, or two that differ.
        """
        text = self.text(key)
        if self._sat:
            if text is None:
                return ""
            lines = text.splitlines()
            if not lines:
                raise BadClipError("empty_caption", "its caption file is empty")
            return lines[0]
        return checked_caption(text, may_be_missing=self._may_be_missing)

    def text(self, key: str) -> str | None:
        """What is written about a video; None where nothing is.

        Raises:
            BadClipError: too long, not UTF-8, or two texts that differ.
        """
        written = list(self._written(key))
        spoken = {text.strip(): where for where, text in reversed(written) if text.strip()}
        if len(spoken) > 1:
            raise BadClipError(TWO_CAPTIONS, f"its captions differ: {' and '.join(_two(spoken))}")
        said = (text for _, text in written if text.strip())
        return next(said, written[0][1] if written else None)

    def version(self, key: str) -> tuple[object, ...]:
        """Distinguishes the caption of a video from its next version."""
        path = self._local_path(key)
        if path is None:
            label = self.label(key)
            found = object_version(self._entries[label]) if label is not None else ()
            return (*found, *(repr(row.text) for row in self.rows.get(key, ())))
        stat = path.stat() if path.is_file() else None
        return (stat.st_size, stat.st_mtime) if stat else ()

    def label(self, key: str) -> str | None:
        """Key of the caption file of a video, in whatever normal form it is written."""
        wanted = sat_label_path(key) if self._sat else label_key(key)
        if wanted in self._entries:
            return wanted
        return None if self._sat else self._by_form.get(normal_form(wanted))

    @property
    def rows(self) -> Mapping[str, Sequence[Row]]:
        """Rows of tables by the key of their video."""
        return self._tables[0]

    @property
    def lost_rows(self) -> Sequence[Row]:
        """Rows of tables whose video is not there."""
        return self._tables[1]

    @cached_property
    def _tables(self) -> tuple[dict[str, list[Row]], tuple[Row, ...]]:
        if self._sat:
            return {}, ()
        return by_video(caption_rows(self._storage, self._entries), list(self._entries))

    def _written(self, key: str) -> Iterator[tuple[str, str]]:
        """(where, text) of all that is written about a video."""
        data = self._data(key)
        if data is not None:
            yield self.label(key) or "its caption file", caption_text(data)
        for row in self.rows.get(key, ()):
            if row.text is not None:
                yield row.where, field_text(row.text)

    def _check_conflicts(self, keys: Sequence[str]) -> None:
        several = [
            key
            for key in keys
            if len(self.rows.get(key, ())) + (key in self.rows and self.label(key) is not None) > 1
        ]
        with ThreadPoolExecutor(READERS) as pool:
            problems = [p for p in pool.map(self._conflict, several) if p is not None]
        if problems:
            raise DataError(
                f"{len(problems)} of {len(keys)} videos have two captions that differ: "
                + _first(problems),
                where=self._root,
                fix="remove one of the two, or make them the same",
            )

    def _conflict(self, key: str) -> str | None:
        try:
            self.text(key)
        except BadClipError as problem:
            if problem.reason == TWO_CAPTIONS:
                return f"{key} ({problem.detail})"
        return None

    def _missing(self, key: str) -> str | None:
        """What is wrong with the caption of a video, where that is cheap to find."""
        if self._sat:
            is_empty = self.version(key)[:1] == (0,)
            return f"{key} (its caption file is empty)" if is_empty else None
        label, rows = self.label(key), self.rows.get(key, ())
        if any(str(row.text).strip() for row in rows if row.text is not None):
            return None
        if label is None:
            blank = f"{rows[0].where} is blank" if rows else f"no {label_key(key)}"
            return f"{key} ({blank})"
        is_short = self._entries[label].size_bytes <= BLANK_BYTES
        if is_short and not (self._data(key) or b"").strip():
            return f"{key} ({label} is blank)"
        return None

    def _local_path(self, key: str) -> Path | None:
        """Upstream replaces text in the full path, so the file may be outside of the folder."""
        is_local = self._sat and not is_remote(self._root)
        return Path(sat_label_path(f"{self._root}/{key}")) if is_local else None

    def _data(self, key: str) -> bytes | None:
        path = self._local_path(key)
        if path is not None:
            return path.read_bytes() if path.is_file() else None
        label = self.label(key)
        try:
            return None if label is None else self._storage.read_small(label)
        except ObjectMissingError:
            return None


def sat_label_path(path: str) -> str:
    """Upstream's caption path: every `.mp4` and every `videos` in the whole path is replaced."""
    return path.replace(".mp4", ".txt").replace("videos", "labels")


def _two(spoken: Mapping[str, str]) -> list[str]:
    return sorted(spoken.values())[:2]


def _first(problems: Sequence[str]) -> str:
    more = f"; and {len(problems) - NAMES_SHOWN} more" if len(problems) > NAMES_SHOWN else ""
    return "; ".join(problems[:NAMES_SHOWN]) + more
