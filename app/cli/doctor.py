"""`cogvx doctor`: versions, devices, shared memory, ranks and storage of this machine or pod.

With `--json` one object: `rank` (the resolved table, or null), `versions`, `devices`, `machine`,
`storage` and `problems`. The exit code is 0 if there is no problem, else that of the first one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from importlib import metadata

from app import __version__
from app.cli import output
from app.distributed.devices import count_gpus
from app.distributed.environment import resolve_layout
from app.errors import CogvxError, DataError

PACKAGES = (
    *("torch", "deepspeed", "transformers", "safetensors", "einops", "av", "decord", "webdataset"),
    *("omegaconf", "numpy", "s3fs", "botocore", "wandb", "kubernetes"),
)
TORCH_QUESTION = """
import json, torch
found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
print(json.dumps({
    "cuda": torch.version.cuda,
    "gpus": [{"name": f.name, "memory_gib": round(f.total_memory / 2**30, 1)} for f in found],
}))
"""
TORCH_TIMEOUT_S = 120
SMALLEST_SHM_GIB = 1.0
GIB = 2**30


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--data", metavar="URL", help="also check that this folder or s3:// prefix can be read"
    )
    parser.add_argument(
        "--save",
        metavar="URL",
        help="also write, read and delete a small object under this folder or s3:// prefix",
    )


def run(args: argparse.Namespace) -> int:
    """Print the report; return the exit code of the first problem."""
    problems: list[CogvxError] = []
    versions = _versions()
    report: dict[str, object] = {
        "rank": _rank(os.environ, problems),
        "versions": versions,
        "devices": _devices(os.environ, has_torch=versions["torch"] is not None),
        "machine": _machine(),
        "storage": {
            name: _storage(url, name == "save", problems)
            for name, url in (("data", args.data), ("save", args.save))
            if url
        },
    }
    report["problems"] = [
        {"exit_code": p.exit_code, "what": p.what, "where": p.where, "fix": p.fix} for p in problems
    ]
    if args.json:
        output.as_json(report)
    else:
        _print(report)
    for problem in problems:
        output.error(problem)
    return problems[0].exit_code if problems else 0


def _rank(environ: Mapping[str, str], problems: list[CogvxError]) -> dict[str, object] | None:
    try:
        return resolve_layout(environ).as_dict()
    except CogvxError as problem:
        problems.append(problem)
        return None


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"cogvx-train": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def _devices(environ: Mapping[str, str], *, has_torch: bool) -> dict[str, object]:
    """GPUs by device file; if there are any, also by torch, in a child: importing it is slow."""
    found: dict[str, object] = {"gpu_count": count_gpus(environ), "cpu_count": os.cpu_count()}
    if found["gpu_count"] and has_torch:
        found["torch"] = _ask_torch()
    return found


def _ask_torch() -> object:
    try:
        answer = subprocess.run(
            [sys.executable, "-c", TORCH_QUESTION],
            capture_output=True,
            text=True,
            timeout=TORCH_TIMEOUT_S,
            check=True,
        )
        return json.loads(answer.stdout)
    except (subprocess.SubprocessError, ValueError) as problem:
        return {"error": str(problem)}


def _machine() -> dict[str, object]:
    shm = os.statvfs("/dev/shm") if os.path.isdir("/dev/shm") else None
    shm_gib = None if shm is None else round(shm.f_frsize * shm.f_blocks / GIB, 2)
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    enough = shm_gib is not None and shm_gib >= SMALLEST_SHM_GIB
    return {
        "host": platform.node(),
        "memory_gib": round(memory_gib, 1),
        "shm_gib": shm_gib,
        "shm_advice": None if enough else "data workers need 1 GiB or more: shm.sizeLimit: 16Gi",
        "scratch_free_gib": _free_gib("/scratch"),
        "c_compiler": shutil.which("cc") or shutil.which("gcc"),
    }


def _free_gib(folder: str) -> float | None:
    return round(shutil.disk_usage(folder).free / GIB, 1) if os.path.isdir(folder) else None


def _storage(url: str, writing: bool, problems: list[CogvxError]) -> dict[str, object]:
    # Imported here: the S3 client takes a second to import.
    from app.storage.opening import open_storage

    facts: dict[str, object] = {"url": url}
    started = time.monotonic()
    try:
        storage = open_storage(url)
        facts["identity"] = storage.identity()
        storage.check_reachable(30.0)
        facts["folders"] = list(storage.folders())[:10]
        if writing:
            key = f"doctor-{uuid.uuid4().hex}.txt"
            storage.write_small(key, b"cogvx doctor")
            found = storage.read_small(key)
            storage.delete([key])
            if found != b"cogvx doctor":
                raise DataError(
                    "the object read back differs from the one written",
                    where=f"{url}/{key}",
                    fix="check the storage service; a proxy may modify request bodies",
                )
            facts["write_read_delete"] = "ok"
        facts["reach"] = "ok"
    except CogvxError as problem:
        problems.append(problem)
        facts["reach"] = problem.what
    facts["seconds"] = round(time.monotonic() - started, 2)
    return facts


def _print(report: Mapping[str, object]) -> None:
    for title in ("versions", "devices", "machine"):
        _facts(title, report[title])
    rank = report["rank"]
    if isinstance(rank, dict):
        sources = rank["sources"]
        rows = [
            [name, value, sources.get(name, "")]
            for name, value in rank.items()
            if name != "sources"
        ]
        output.table("rank", ["field", "value", "given by"], rows)
    storage = report["storage"]
    if isinstance(storage, dict):
        for name, facts in storage.items():
            _facts(f"storage: {name}", facts)


def _facts(title: str, facts: object) -> None:
    if isinstance(facts, dict):
        output.facts(title, facts)
