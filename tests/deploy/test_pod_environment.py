"""From the rendered job, through the operator's variables, to what PID 1 of each pod reads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from app.distributed.environment import resolve_layout
from app.rehearsal.chart import Document, Release, render
from app.rehearsal.operator_environment import operator_environment
from app.rehearsal.processes import LocalPods
from app.rehearsal.substitutions import Surroundings, localize

CHART = Path(__file__).parents[2] / "deploy" / "helm"
LAYER = {"args": {"save": "s3://bucket/runs"}}
RELEASE = Release("cogvx", "team-a")


def documents_of(values: dict[str, Any]) -> list[Document]:
    return render(CHART, {"config": {"layers": [LAYER]}, **values}, RELEASE)


def job_of(values: dict[str, Any]) -> Document:
    return next(d for d in documents_of(values) if d["kind"] == "PyTorchJob")


def test_four_nodes_of_eight_gpus() -> None:
    job = job_of({"workers": 3, "gpusPerPod": 8})
    name = job["metadata"]["name"]

    found = operator_environment(job)

    assert list(found) == [f"{name}-{pod}" for pod in ("master-0", *WORKERS)]
    assert found[f"{name}-worker-1"] == {
        "PYTHONUNBUFFERED": "1",
        "MASTER_PORT": "23456",
        "PET_MASTER_PORT": "23456",
        "MASTER_ADDR": f"{name}-master-0",
        "PET_MASTER_ADDR": f"{name}-master-0",
        "WORLD_SIZE": "32",
        "RANK": "2",
        "PET_NODE_RANK": "2",
        "PET_NPROC_PER_NODE": "8",
        "PET_NNODES": "4",
    }
    layouts = [resolve_layout(environ, lambda _: 8) for environ in found.values()]
    assert {layout.mode for layout in layouts} == {"static"}
    assert [layout.node_rank for layout in layouts] == [0, 1, 2, 3]
    assert {layout.world_size for layout in layouts} == {32}


WORKERS = ("worker-0", "worker-1", "worker-2")


def test_one_gpu_per_pod_is_plain() -> None:
    found = operator_environment(job_of({"workers": 1, "gpusPerPod": 1}))

    layouts = [resolve_layout(environ, lambda _: 1) for environ in found.values()]
    assert [(p.mode, p.node_rank, p.world_size) for p in layouts] == [
        ("plain", 0, 2),
        ("plain", 1, 2),
    ]


def test_a_master_alone_with_eight_gpus_is_one_node() -> None:
    (environ,) = operator_environment(job_of({"gpusPerPod": 8})).values()

    layout = resolve_layout(environ, lambda _: 8)
    assert (layout.mode, layout.nodes, layout.world_size) == ("static", 1, 8)


def test_every_pod_started_here_says_of_itself_what_the_manifest_says(tmp_path: Path) -> None:
    documents = documents_of(
        {"workers": 1, "gpusPerPod": 0, "s3": {"existingSecret": "keys", "region": "eu-1"}}
    )
    job = next(document for document in documents if document["kind"] == "PyTorchJob")
    for replica in job["spec"]["pytorchReplicaSpecs"].values():
        replica["template"]["spec"]["containers"][0]["args"] = ["doctor", "--json"]
    keys = {"AWS_ACCESS_KEY_ID": "AK", "AWS_SECRET_ACCESS_KEY": "SK"}
    surroundings = Surroundings(root=tmp_path, master_port=4321, secrets={"keys": keys})
    local = localize(documents, surroundings)

    with LocalPods(local.processes, tmp_path / "logs") as pods:
        codes = pods.wait(60)

    assert set(codes.values()) == {0}
    ranks = [_report(tmp_path / "logs" / f"{process.pod}.log") for process in local.processes]
    assert [(rank["mode"], rank["node_rank"], rank["world_size"]) for rank in ranks] == [
        ("plain", 0, 2),
        ("plain", 1, 2),
    ]
    assert {(rank["master_addr"], rank["master_port"]) for rank in ranks} == {("127.0.0.1", 4321)}


def _report(log: Path) -> dict[str, Any]:
    """The JSON object that doctor printed between the launcher's lines."""
    text = log.read_text()
    report, _ = json.JSONDecoder().raw_decode(text[text.index('{\n  "rank"') :])
    found: dict[str, Any] = report["rank"]
    return found


def test_the_command_line_of_the_pods_is_a_valid_configuration(tmp_path: Path) -> None:
    documents = render(CHART, {"run": {"args": ["--save", "s3://bucket/runs"]}}, RELEASE)
    (pod,) = localize(documents, Surroundings(root=tmp_path, master_port=4321)).processes
    words = pod.argv[pod.argv.index("train") + 1 :]

    result = subprocess.run(
        [sys.executable, "-m", "app", "config", "check", *words],
        env=dict(pod.environ),
        cwd=pod.folder,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (result.returncode, result.stderr.count("error")) == (0, 0), result.stderr
