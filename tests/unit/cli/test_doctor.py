"""`cogvx doctor --json`: the keys that scripts read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

POD = {
    "MASTER_ADDR": "cogvx-master-0",
    "PET_MASTER_ADDR": "cogvx-master-0",
    "MASTER_PORT": "23456",
    "PET_MASTER_PORT": "23456",
    "RANK": "1",
    "PET_NODE_RANK": "1",
    "WORLD_SIZE": "16",
    "PET_NNODES": "2",
    "PET_NPROC_PER_NODE": "8",
}


def doctor(*words: str, **environ: str) -> tuple[int, dict[str, Any], str]:
    kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    result = subprocess.run(
        [sys.executable, "-m", "app", "doctor", "--json", *words],
        env={**kept, "PYTHONPATH": os.getcwd(), **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return result.returncode, json.loads(result.stdout), result.stderr


def test_rank_has_exactly_the_resolved_table() -> None:
    code, report, _ = doctor(**POD)

    assert code == 0
    assert report["rank"] == {
        "node_rank": 1,
        "nodes": 2,
        "nproc_per_node": 8,
        "world_size": 16,
        "master_addr": "cogvx-master-0",
        "master_port": 23456,
        "mode": "static",
        "sources": {
            "node_rank": "PET_NODE_RANK",
            "nodes": "PET_NNODES",
            "nproc_per_node": "PET_NPROC_PER_NODE",
            "world_size": "WORLD_SIZE",
            "master_addr": "PET_MASTER_ADDR",
            "master_port": "PET_MASTER_PORT",
        },
    }


def test_a_contradiction_leaves_rank_empty_and_the_rest_readable() -> None:
    code, report, errors = doctor(**POD | {"RANK": "16"})

    assert code == 78
    assert report["rank"] is None
    assert report["problems"][0]["exit_code"] == 78
    assert report["versions"]["python"].startswith("3.")
    assert "RANK is 16 of WORLD_SIZE 16" in errors


def test_versions_devices_and_machine_are_there() -> None:
    _, report, _ = doctor()

    assert {"cogvx-train", "torch", "deepspeed", "numpy"} <= set(report["versions"])
    assert isinstance(report["devices"]["gpu_count"], int)
    assert report["machine"]["memory_gib"] > 0


def test_a_save_folder_is_written_read_and_cleaned(tmp_path: Path) -> None:
    code, report, _ = doctor("--save", str(tmp_path))

    assert code == 0
    assert report["storage"]["save"]["write_read_delete"] == "ok"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_data_place_that_is_not_there_gives_its_code(tmp_path: Path) -> None:
    code, report, _ = doctor("--data", "gs://bucket/x")

    assert code == 78
    assert "not supported" in report["storage"]["data"]["reach"]


def test_torch_is_asked_only_where_there_is_a_gpu() -> None:
    _, report, _ = doctor(CUDA_VISIBLE_DEVICES="")

    assert report["devices"]["gpu_count"] == 0
    assert "torch" not in report["devices"]
