"""Log lines: an event with facts. JSON lines for machines, short text for a terminal.

    log.info("checkpoint published", extra={"size_gib": size, "url": url})

Rank and step are added here. Secrets are masked: the values of secret environment variables, and
what looks like a key, signature or password in an address.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

MASK = "***"
MIN_SECRET = 6  # characters; masking shorter values would eat ordinary words
SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|CREDENTIAL", re.I)
SECRET_SHAPES = (
    re.compile(r"(?<=://)[^/@\s:]+:[^/@\s]+(?=@)"),  # user:password of an address
    re.compile(r"(?i)(?<=x-amz-signature=)[^&\s\"]+|(?<=x-amz-credential=)[^&\s\"]+"),
    re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    re.compile(r"(?i)(?<=bearer )[\w.~+/=-]{8,}"),
)
VERBOSE = frozenset({"aiobotocore", "botocore", "fsspec", "s3fs", "urllib3"})
# Attributes that every record has; all others came as `extra`.
STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


@dataclass(slots=True)
class LogContext:
    """What every line has besides its own facts. The loop updates `step`."""

    rank: int | None  # None: PID 1 of a pod, which has none
    step: int | None = None


class SecretsFilter:
    """Replaces secrets in text."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        values = {
            value
            for name, value in environment.items()
            if SECRET_NAME.search(name) and len(value) >= MIN_SECRET
        }
        # The longest first: one secret may be the beginning of another.
        self._values = sorted(values, key=len, reverse=True)

    def masked(self, text: str) -> str:
        for value in self._values:
            text = text.replace(value, MASK)
        for shape in SECRET_SHAPES:
            text = shape.sub(MASK, text)
        return text


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def __init__(self, context: LogContext, secrets: SecretsFilter) -> None:
        super().__init__()
        self._context = context
        self._secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _utc(record.created),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        for name, number in (("rank", self._context.rank), ("step", self._context.step)):
            if number is not None:
                line[name] = number
        line |= {name: _finite(value) for name, value in facts_of(record).items()}
        line["logger"] = record.name
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return self._secrets.masked(json.dumps(line, default=str, ensure_ascii=False))


class TextFormatter(logging.Formatter):
    """`12:03:04 info rank 0 step 10: event  name=value ...` for a terminal."""

    def __init__(self, context: LogContext, secrets: SecretsFilter) -> None:
        super().__init__()
        self._context = context
        self._secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        place = f"rank {self._context.rank}"
        if self._context.step is not None:
            place += f" step {self._context.step}"
        facts = " ".join(f"{name}={_short(value)}" for name, value in facts_of(record).items())
        line = f"{clock} {record.levelname.lower()} {place}: {record.getMessage()}"
        line = f"{line}  {facts}" if facts else line
        if record.exc_info:
            line = f"{line}\n{self.formatException(record.exc_info)}"
        return self._secrets.masked(line)


@contextlib.contextmanager
def logging_for(
    context: LogContext,
    *,
    level: int = logging.INFO,
    json_lines: bool | None = None,
    stream: TextIO | None = None,
    path: Path | None = None,
) -> Iterator[LogContext]:
    """Send the log to a stream, and to a file if there is a path, until the end of the block.

    Args:
        level: of rank 0; other ranks show warnings only, unless it is DEBUG.
        json_lines: None: text on a terminal, JSON elsewhere.
        stream: standard error by default.
        path: every line of every rank from INFO on, as JSON, is appended to it.
    """
    stream = stream or sys.stderr
    if json_lines is None:
        json_lines = not stream.isatty()
    secrets = SecretsFilter(os.environ)
    form = JsonFormatter if json_lines else TextFormatter
    shown = logging.StreamHandler(stream)
    shown.setFormatter(form(context, secrets))
    quiet = context.rank != 0 and level > logging.DEBUG
    shown.setLevel(max(level, logging.WARNING) if quiet else level)
    if level > logging.DEBUG:
        shown.addFilter(_is_worth_showing)
    handlers: list[logging.Handler] = [shown]
    if path is not None:
        kept = logging.FileHandler(path)
        kept.setFormatter(JsonFormatter(context, secrets))
        kept.setLevel(min(level, logging.INFO))
        handlers.append(kept)
    root = logging.getLogger()
    before = root.level
    root.setLevel(min(handler.level for handler in handlers))
    for handler in handlers:
        root.addHandler(handler)
    try:
        yield context
    finally:
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()
        root.setLevel(before)


def _is_worth_showing(record: logging.LogRecord) -> bool:
    """False for what verbose libraries log below WARNING; the log file has everything."""
    library = record.name.split(".")[0]
    return record.levelno >= logging.WARNING or library not in VERBOSE


def facts_of(record: logging.LogRecord) -> dict[str, object]:
    """What was passed as `extra`."""
    return {name: value for name, value in vars(record).items() if name not in STANDARD}


def _utc(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1000):03d}Z"


def _finite(value: object) -> object:
    """JSON has no NaN and no infinity."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if " " in text or not text else text
