"""Digests of frozen weights, without reading them twice.

The sha256 of a VAE or text encoder decides whether a latent cache fits. Hashing a text encoder of
19 GB takes a minute, so the digest is kept under the weights' version (paths, sizes, ETags or
times as a listing shows them): in the cache by `cogvx encode`, and on the node's disk.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from app.data.latent_cache import WEIGHTS_FOLDER
from app.data.sources.protocols import identity_of, object_version
from app.errors import AccessDeniedError, InputMissingError
from app.storage.fetch import fetch
from app.storage.node_disk import node_folder
from app.storage.objects import Entry, Storage, stat_if_present
from app.storage.opening import is_remote, local_path, open_storage

log = logging.getLogger(__name__)

# Of a folder: weights, sizes and tokenizer. Other files (a README) are ignored.
SUFFIXES = (".safetensors", ".bin", ".pt", ".json", ".model")
# Folders of a diffusers pipeline that belong to the text encoder.
PARTS_OF_PIPELINE = ("text_encoder", "tokenizer")


def weights_sha256(url: str | None, root: Storage, *, keeps: bool = False) -> str | None:
    """sha256 of a weights file, or of a folder's files with their names; None: nothing there.

    Args:
        url: local or s3://; None: there is none.
        root: of the latent cache, which may know the digest.
        keeps: write the digest there.

    Raises:
        AccessDeniedError, RetryableError: from the storage.
    """
    if url is None:
        return None
    try:
        files = listed(url)
    except InputMissingError:
        return None
    version = identity_of(
        _absolute(url), [(name, object_version(files[name])) for name in sorted(files)]
    )
    key = f"{WEIGHTS_FOLDER}/{version}.json"
    digest = _known(root, key)
    if digest is None:
        digest = _hashed_once(url, files, version)
        if keeps:
            root.write_small(key, json.dumps({"sha256": digest, "url": url}).encode())
    return digest


def listed(url: str) -> Mapping[str, Entry]:
    """Name below `url` -> object; the name of a file itself is "".

    Raises:
        InputMissingError: neither a file nor a folder with weights.
    """
    absolute = _absolute(url)
    parent, _, name = absolute.rstrip("/").rpartition("/")
    if is_remote(url) and parent.endswith(("/", ":")):
        parent, name = absolute, ""  # the bucket itself
    storage = open_storage(parent or "/")
    file = stat_if_present(storage, name) if name else None
    if file is not None:
        return {"": file}
    prefix = f"{name}/" if name else ""
    entries = {entry.key.removeprefix(prefix): entry for entry in storage.list(prefix)}
    files = {path: entry for path, entry in entries.items() if path.endswith(SUFFIXES)}
    inside = [path for path in files if PurePosixPath(path).parent.name in PARTS_OF_PIPELINE]
    kept = [path for path in inside or files if path.count("/") == bool(inside)]
    if not kept:
        raise InputMissingError("there are no weights here", where=url, fix="check the path")
    return {path: files[path] for path in kept}


def _absolute(url: str) -> str:
    return url if is_remote(url) else str(local_path(url).resolve())


def _known(root: Storage, key: str) -> str | None:
    try:
        return str(json.loads(root.read_small(key))["sha256"])
    except (InputMissingError, AccessDeniedError, ValueError, KeyError, TypeError):
        return None


def _hashed_once(url: str, files: Mapping[str, Entry], version: str) -> str:
    """Hash in one process of the node; the others find its result."""
    folder = node_folder("digests")
    folder.mkdir(parents=True, exist_ok=True)
    memo = folder / f"{version}.txt"
    with (folder / f"{version}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if memo.is_file() and len(known := memo.read_text().strip()) == 64:
            return known
        size_bytes = sum(entry.size_bytes for entry in files.values())
        log.info("hashing weights", extra={"path": url, "files": len(files), "bytes": size_bytes})
        digest = _digest(fetch(url, node_folder("weights")), sorted(files))
        memo.write_text(digest)
    return digest


def _digest(path: Path, names: list[str]) -> str:
    """Of a file: what `sha256sum` shows; of a folder: of such lines, sorted by name."""
    if names == [""]:
        return _sha256(path)
    lines = "".join(f"{_sha256(path / name)}  {name}\n" for name in names)
    return hashlib.sha256(lines.encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
