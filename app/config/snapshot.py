"""The record of a run's configuration: canonical YAML, secrets masked, and its digest.

Canonical: keys sorted, one spelling for each value, nothing that depends on the process or the
machine. Two runs with the same digest have the same configuration.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict

import yaml

from app.config.schema.run import RunConfig

MASK = "***"
SECRET_KEY = re.compile(
    r"(^|_)(api_?key|access_?key(_id)?|secret(_?key)?|secrets?|password|passwd|token|credentials?)$",
    re.IGNORECASE,
)
SECRET_IN_URL = (
    # scheme://user:password@host
    re.compile(r"(?<=://)[^/@\s]+(?=@)"),
    # ?X-Amz-Signature=..., &token=...
    re.compile(
        r"(?i)(?<=[?&])((?:x-amz-[\w-]+|[\w-]*(?:token|secret|signature|key)[\w-]*)=)[^&\s]+"
    ),
)
OF_THE_PROCESS = frozenset({"local_rank", "device", "nproc_per_node"})


def masked(value: object, key: str = "") -> object:
    """The value with every secret replaced by ***: by the name of its key, or inside addresses."""
    if isinstance(value, Mapping):
        return {str(name): masked(entry, str(name)) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [masked(entry, key) for entry in value]
    if SECRET_KEY.search(key) and value not in (None, ""):
        return MASK
    if isinstance(value, str):
        value = SECRET_IN_URL[0].sub(MASK, value)
        return SECRET_IN_URL[1].sub(lambda match: match.group(1) + MASK, value)
    return value


def snapshot(config: RunConfig) -> str:
    """Canonical YAML of everything that decides what the run computes and where it is."""
    arguments = {
        name: value for name, value in config.arguments.items() if name not in OF_THE_PROCESS
    }
    record: dict[str, object] = {
        "run_id": config.run_id,
        "args": arguments,
        "compat": asdict(config.compat),
        "registered": dict(config.registered),
        **config.sections,
    }
    return yaml.safe_dump(
        masked(record), sort_keys=True, default_flow_style=False, allow_unicode=True, width=100
    )


def digest(text: str) -> str:
    """sha256 of a snapshot, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
