"""Upload the weights of a model to a bucket: checked, with a manifest, ready for a configuration.

<target>/transformer/..., vae/..., t5/...     the files as they were
<target>/weights.json                         written last: sizes and sha256 of every file
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from app.config.schema.model import DiTConfig
from app.errors import DataError, InputMissingError, UsageError
from app.run.weights.description import describe_files
from app.run.weights.parts import (
    PARTS,
    ModelPart,
    checked_t5,
    checked_transformer,
    checked_vae,
    find_parts,
    unzipped,
)
from app.run.weights.source import Notify
from app.storage.fetch import fetch
from app.storage.objects import PIECE_BYTES, Entry, ObjectMissingError, Storage
from app.storage.opening import open_storage

MANIFEST = "weights.json"
FORMAT_VERSION = 1
TEXT_ENCODER = "sgm.modules.encoders.modules.FrozenT5Embedder"
UCG_RATE = 0.1  # of every released model's training


@dataclass(frozen=True, slots=True)
class PutRequest:
    """What to upload.

    Attributes:
        given: part -> URL, for parts that are not in the source.
        base: files of the model, for sizes that no released model has.
        verify: read every object back and compare.
        overwrite: replace files that differ.
    """

    given: Mapping[str, str] = field(default_factory=dict)
    base: tuple[str, ...] = ()
    verify: bool = True
    overwrite: bool = False


@dataclass(slots=True)
class PutReport:
    """What the target holds now."""

    url: str
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    uploaded: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    yaml: str = ""


def put_weights(
    source: str | None, target: str, request: PutRequest, scratch: Path, notify: Notify
) -> PutReport:
    """Find the parts, check them, upload what is missing, and write the manifest.

    Args:
        source: folder, file or zip, local or s3://; None: only the parts that are given.
        target: folder or s3:// prefix.
        request: what else is known.
        scratch: an empty folder for what has to be fetched or unpacked.
        notify: takes one line about each step.

    Raises:
        InputMissingError: there is no part of a model.
        WeightsError: a part is incomplete, or does not fit the others.
        UsageError: the target holds other weights.
        DataError: what was read back is not what was written.
    """
    config = describe_files(request.base).network if request.base else None
    parts, network = _checked(_found(source, request, scratch), config, notify)
    storage = open_storage(target)
    report = PutReport(storage.url)
    before = _manifest_or_nothing(storage)
    records = _digested(parts, notify)
    _upload(storage, (parts, records, _stale(before, records)), request, report, notify)
    if request.verify:
        _read_back(storage, records, report.uploaded, notify)
    report.parts = {
        part.name: {
            "entry": f"{part.name}/{part.entry}".rstrip("/"),
            **part.facts,
            "files": {key: records[f"{part.name}/{key}"] for key in part.files},
        }
        for part in parts
    }
    kept = {name: value for name, value in before.items() if name not in report.parts}
    report.parts = {n: p for n in PARTS if (p := {**kept, **report.parts}.get(n)) is not None}
    manifest = {"format_version": FORMAT_VERSION, "parts": report.parts}
    storage.write_small(MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
    report.yaml = yaml_lines(storage.url, report.parts, network)
    return report


def check_weights(url: str, notify: Notify) -> dict[str, Any]:
    """Read every file that the manifest lists, and compare its size and sha256.

    Raises:
        InputMissingError: there is no manifest, or a file is missing.
        DataError: a file differs.
    """
    storage = open_storage(url)
    parts = _manifest_or_nothing(storage)
    if not parts:
        raise InputMissingError(
            f"there is no {MANIFEST} here",
            where=storage.url,
            fix="upload the weights with cogvx weights put",
        )
    records = {
        f"{name}/{key}": record
        for name, part in parts.items()
        for key, record in part["files"].items()
    }
    _read_back(storage, records, list(records), notify)
    return {"url": storage.url, "files": len(records), "parts": parts}


def yaml_lines(url: str, parts: Mapping[str, Any], network: DiTConfig | None) -> str:
    """A layer of YAML that names the weights, for `--base` after the model's file."""
    layer: dict[str, Any] = {}
    if "transformer" in parts:
        layer["args"] = {"load": f"{url}/{parts['transformer']['entry']}"}
    model: dict[str, Any] = {}
    if "t5" in parts:
        length = network.position.text_length if network is not None else 226
        params = {"model_dir": f"{url}/{parts['t5']['entry']}", "max_length": length}
        encoder = {
            "is_trainable": False,
            "ucg_rate": UCG_RATE,
            "target": TEXT_ENCODER,
            "params": params,
        }
        model["conditioner_config"] = {"params": {"emb_models": [encoder]}}
    if "vae" in parts:
        path = f"{url}/{parts['vae']['entry']}"
        model["first_stage_config"] = {"params": {"ckpt_path": path}}
    if model:
        layer["model"] = model
    return yaml.safe_dump(layer, sort_keys=False)


def _found(source: str | None, request: PutRequest, scratch: Path) -> dict[str, Path]:
    given = {}
    for name, url in request.given.items():
        inside = find_parts(_opened(url, scratch, name), {}) if url.endswith(".zip") else {}
        given[name] = inside[name] if name in inside else _opened(url, scratch, name)
    return find_parts(_opened(source, scratch, "source") if source else None, given)


def _opened(url: str, scratch: Path, name: str) -> Path:
    """A local path with what the URL names, a zip unpacked."""
    local = fetch(url, scratch)
    if local.suffix != ".zip":
        return local
    folder = scratch / f"unzipped-{name}"
    if not folder.exists():
        folder.mkdir(parents=True)
        unzipped(local, folder)
    return folder


def _checked(
    found: Mapping[str, Path], config: DiTConfig | None, notify: Notify
) -> tuple[list[ModelPart], DiTConfig | None]:
    parts = []
    network = config
    for name, path in found.items():
        notify(f"checking {name}: {path}")
        if name == "transformer":
            part, network = checked_transformer(path, config)
        elif name == "vae":
            part = checked_vae(path)
        else:
            part = checked_t5(path, network.text_hidden_size if network else None)
        parts.append(part)
    return parts, network


def _digested(parts: list[ModelPart], notify: Notify) -> dict[str, dict[str, Any]]:
    """Key in the target -> size and sha256 of the local file."""
    records = {}
    for part in parts:
        for key, path in part.files.items():
            notify(f"sha256 of {part.name}/{key}")
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            records[f"{part.name}/{key}"] = {"size_bytes": path.stat().st_size, "sha256": digest}
    return records


def _upload(
    storage: Storage,
    wanted: tuple[list[ModelPart], Mapping[str, Any], list[str]],
    request: PutRequest,
    report: PutReport,
    notify: Notify,
) -> None:
    """Upload what is missing; replace what differs only with `overwrite`."""
    parts, records, stale = wanted
    states = {key: _state(storage, key, record) for key, record in records.items()}
    differing = [key for key, state in states.items() if state == "other"] + stale
    if differing and not request.overwrite:
        raise UsageError(
            f"the target holds other weights: {differing[0]}",
            where=storage.url,
            fix="name another target, or replace them with --overwrite",
        )
    storage.delete(stale)
    for part in parts:
        for name, path in part.files.items():
            key = f"{part.name}/{name}"
            if states[key] == "same":
                report.skipped.append(key)
                continue
            notify(f"uploading {key} ({records[key]['size_bytes']} bytes)")
            storage.upload(path, key)
            report.uploaded.append(key)


def _stale(before: Mapping[str, Any], records: Mapping[str, Any]) -> list[str]:
    """Files that an earlier upload of a part left under other names: readers would mix them in."""
    parts = {key.partition("/")[0] for key in records}
    known = [f"{name}/{key}" for name in parts & set(before) for key in before[name]["files"]]
    return [key for key in known if key not in records]


def _state(storage: Storage, key: str, record: Mapping[str, Any]) -> str:
    """ "missing", "same" (an earlier call may have been cut off) or "other"."""
    try:
        entry = storage.stat(key)
    except ObjectMissingError:
        return "missing"
    same = entry.size_bytes == record["size_bytes"] and _sha256(storage, entry) == record["sha256"]
    return "same" if same else "other"


def _read_back(
    storage: Storage, records: Mapping[str, Any], keys: list[str], notify: Notify
) -> None:
    for key in keys:
        notify(f"reading back {key}")
        entry = storage.stat(key)
        if entry.size_bytes != records[key]["size_bytes"]:
            found = f"{entry.size_bytes} bytes instead of {records[key]['size_bytes']}"
        elif _sha256(storage, entry) != records[key]["sha256"]:
            found = "a different sha256"
        else:
            continue
        raise DataError(
            f"the object has {found}",
            where=f"{storage.url}/{key}",
            fix="upload the weights again with --overwrite",
        )


def _sha256(storage: Storage, entry: Entry) -> str:
    digest = hashlib.sha256()
    for start in range(0, entry.size_bytes, PIECE_BYTES):
        stop = min(start + PIECE_BYTES, entry.size_bytes)
        digest.update(storage.read_range(entry.key, start, stop))
    return digest.hexdigest()


def _manifest_or_nothing(storage: Storage) -> dict[str, Any]:
    try:
        content = json.loads(storage.read_small(MANIFEST))
        return {name: dict(content["parts"][name]) for name in content["parts"]}
    except ObjectMissingError:
        return {}
    except (ValueError, KeyError, TypeError) as cause:
        raise DataError(
            f"the manifest does not parse ({cause})",
            where=f"{storage.url}/{MANIFEST}",
            fix="delete it and upload the weights again",
        ) from cause
