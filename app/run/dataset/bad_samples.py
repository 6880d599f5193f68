"""The list of bad samples of a run: one file per start and rank, joined for reading.

`quarantine/<attempt>-r<rank>.jsonl`, one JSON object per line. No torch here: laptops read it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from app.checkpoint.layout import ATTEMPTS, QUARANTINE, RUN, quarantine_key
from app.config.snapshot import masked
from app.data.json_files import parsed_lines
from app.errors import InputMissingError
from app.storage.objects import Storage
from app.storage.opening import open_storage

log = logging.getLogger(__name__)

READERS = 8
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Listed:
    """One bad sample of a run, however often it was found.

    Attributes:
        source: entry of `train_data` that it belongs to.
        shard: key of its shard; "" in a folder.
        key: its name there.
        reason: a short word to count by.
        detail: what was found, for people.
        sha256: of the video file, where it could be read.
        step: in which it was met first.
        attempts: starts of the run that met it.
    """

    source: str
    shard: str
    key: str
    reason: str
    detail: str
    sha256: str | None
    step: int
    attempts: tuple[int, ...]


def list_quarantine(url: str) -> list[Listed]:
    """The bad samples of a run, sorted by source, shard and key.

    Args:
        url: folder of the run: <save>/<run id>, local or s3://.

    Raises:
        InputMissingError: there is no run.
    """
    storage = open_storage(url)
    storage.check_reachable(20.0)
    if not storage.list(RUN) and not storage.list(ATTEMPTS):
        raise InputMissingError(
            "there is no run here (no run.json)",
            where=url,
            fix="give the folder of one run: <save>/<run id>",
        )
    return joined(read_lines(storage))


def read_lines(storage: Storage) -> list[Mapping[str, Any]]:
    """The lines of every start and rank, in the order of starts; unreadable ones are skipped."""
    keys = [entry.key for entry in storage.list(QUARANTINE)]
    with ThreadPoolExecutor(READERS) as pool:
        files = list(pool.map(storage.read_small, keys))
    lines, unreadable = parsed_lines(b"\n".join(files), _line)
    if unreadable:
        log.warning("lines of the list are not readable", extra={"lines": unreadable})
    return lines


def _line(value: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**value, "attempt": int(value["attempt"]), "step": int(value["step"])}


def joined(lines: Iterable[Mapping[str, Any]]) -> list[Listed]:
    """One entry per sample; the newest line says what is wrong with it."""
    by_sample: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for line in lines:
        sample = (str(line.get("source", "")), str(line.get("shard", "")), str(line.get("key", "")))
        by_sample.setdefault(sample, []).append(line)
    found = []
    for (source, shard, key), group in sorted(by_sample.items()):
        newest = max(group, key=lambda line: (line["attempt"], line["step"]))
        sha256 = newest.get("sha256")
        found.append(
            Listed(
                source=source,
                shard=shard,
                key=key,
                reason=str(newest.get("reason", UNKNOWN)),
                detail=str(newest.get("detail", "")),
                sha256=None if sha256 is None else str(sha256),
                step=min(line["step"] for line in group),
                attempts=tuple(sorted({line["attempt"] for line in group})),
            )
        )
    return found


def write_lines(
    storage: Storage, attempt: int, rank: int, lines: Sequence[Mapping[str, Any]]
) -> None:
    """Rewrite the file of one start and rank: objects cannot be appended to."""
    text = "".join(json.dumps(masked(line), ensure_ascii=False) + "\n" for line in lines)
    storage.write_small(quarantine_key(attempt, rank), text.encode())
