"""From the many ways to name shards to a list of (folder, pattern), without touching storage.

Understood: `a.tar`, `dir/` (every .tar below it), `x-{000..123}.tar`, `{a,b}/x.tar`, globs,
`one::two`, upstream's `;dirA,dirB*3`, all of them local, s3:// or http(s)://. Nothing here runs a
command: `pipe:` and the like are refused by name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod

from braceexpand import braceexpand

from app.data.names import SHARD_SUFFIX, shard_fault
from app.errors import ConfigError

MOST_NAMES = 1_000_000
_BRACES = re.compile(r"\{([^{}]*)\}")
# `1..20` or `a..f`, with or without a step. braceexpand forgives a line break at the end.
_RANGE = re.compile(r"(?:(-?\d+)\.\.(-?\d+)|([A-Za-z])\.\.([A-Za-z]))(?:\.\.-?(\d+))?\n?")
_COUNT = re.compile("\0([0-9]+)\0")
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*):(//)?")
_GLOB = re.compile(r"[*?\[]")
_REPEAT = re.compile(r"(.*?)\*(\d+)")
SHARD_FIX = "unpack it or name it again: shards are uncompressed files called *.tar"
# A question mark in a glob has no `name=` after it.
_QUERY = re.compile(r"https?://([^/?#]*)[^?]*\?[^/=?]+=", re.IGNORECASE)
SCHEMES = ("s3", "file", "http", "https")


@dataclass(frozen=True, slots=True)
class ShardPattern:
    """Shards of one folder: a file name, a glob below the folder, or every .tar (pattern "")."""

    folder: str  # path or s3:// URL, no slash at the end
    pattern: str
    repeat: int = 1  # how often the shards count
    skip_empty: bool = False  # files of 0 bytes are left out, as upstream's `;` form does

    @property
    def is_name(self) -> bool:
        return bool(self.pattern) and _GLOB.search(self.pattern) is None


def parse_shard_path(path: str, include_dirs: str | None = None) -> list[ShardPattern]:
    """Split what the user wrote into patterns, in the order written.

    Args:
        path: an entry of `train_data`; may be empty when `include_dirs` is given.
        include_dirs: upstream's parameter: `dirA,dirB*3`.

    Raises:
        ConfigError: a form that runs a command, an unknown scheme, a bad brace, or nothing.
    """
    for text in (path, include_dirs or ""):
        if (query := _QUERY.search(text)) is not None:
            raise ConfigError(
                "an address of data cannot have a query (a signed address ends within days)",
                where=f"http(s)://{query[1].rpartition('@')[2]}/...",  # the rest may be a secret
                fix="write it without the query; private data is read from s3:// with credentials",
            )
    if path.startswith(";"):
        include_dirs, path = path[1:], ""
    patterns = [
        _pattern(url) for part in path.split("::") if part.strip() for url in expand_braces(part)
    ]
    for item in (include_dirs or "").split(","):
        if item.strip():
            match = _REPEAT.fullmatch(item.strip())
            folder, repeat = (match[1], int(match[2])) if match else (item.strip(), 1)
            patterns.append(ShardPattern(_checked(folder.rstrip("/")), "", repeat, True))
    if not patterns:
        raise ConfigError("no path is given", where="args.train_data", fix="name shards")
    return patterns


def expand_braces(text: str) -> list[str]:
    """`a{0..2}{x,y}` -> a0x a0y a1x a1y a2x a2y, as a shell does.

    Raises:
        ConfigError: a brace without its partner, more than a million names, or a number or nesting
            that cannot be read.
    """
    try:
        count = _name_count(text)  # before any name is made
    except ValueError as problem:  # a number of thousands of digits
        raise _unreadable(text, problem) from problem
    if count > MOST_NAMES:
        raise ConfigError(
            f"the braces stand for more than {MOST_NAMES} names", where=text, fix="use a glob"
        )
    try:
        return list(dict.fromkeys(braceexpand(text, escape=False)))
    except RecursionError as problem:
        raise _unreadable(text, problem) from problem
    except ValueError as problem:  # UnbalancedBracesError
        raise ConfigError("a brace has no partner", where=text, fix="write {000..123}") from problem


def _unreadable(text: str, problem: Exception) -> ConfigError:
    return ConfigError(f"the braces cannot be read: {problem}", where=text, fix="write {000..123}")


def _name_count(text: str) -> int:
    """Names that a text with braces stands for, at most: inner braces become their counts first.

    Counts stop just above the limit, so that they stay short.
    """
    counted = text.replace("\0", "")
    while (match := _BRACES.search(counted)) is not None:
        ends = _RANGE.fullmatch(match[1])
        if ends is None:
            count = sum(prod(map(int, _COUNT.findall(part))) for part in match[1].split(","))
        else:
            step = int(ends[5] or 1) or 1  # 0 means 1, as in a shell
            pair = (int(ends[1]), int(ends[2])) if ends[1] else (ord(ends[3]), ord(ends[4]))
            count = abs(pair[1] - pair[0]) // step + 1
        count = min(count, MOST_NAMES + 1)
        counted = f"{counted[: match.start()]}\0{count}\0{counted[match.end() :]}"
    return prod(map(int, _COUNT.findall(counted)))


def _pattern(url: str) -> ShardPattern:
    url = _checked(url.strip())
    glob = _GLOB.search(url)
    fault = shard_fault(url)
    if fault is not None and glob is None:
        raise ConfigError(f"this shard is not read: {fault}", where=url, fix=SHARD_FIX)
    if glob is None and not url.endswith(SHARD_SUFFIX):
        return ShardPattern(url.rstrip("/") or "/", "")
    folder, slash, _ = (url[: glob.start()] if glob else url).rpartition("/")
    return ShardPattern(folder or slash or ".", url[len(folder) :].lstrip("/"))


def _checked(url: str) -> str:
    """The URL, if its scheme is one that we read."""
    match = _SCHEME.match(url)
    if match is None or (match[1] in SCHEMES and match[2]):
        return url
    name = match[1].lower()
    if name in ("pipe", "rclone"):
        what, fix = f"{name}: runs a command, which data may not do", "copy the shards to a bucket"
    elif name in ("boto3", "metaboto3"):
        what, fix = f"{name}:// is upstream's name for S3", f"write s3{url[len(name) :]}"
    else:
        what, fix = f"data of the kind '{name}:' cannot be read", "copy it to a folder or bucket"
    raise ConfigError(what, where=url, fix=fix + "; use a path or s3://bucket/prefix")
