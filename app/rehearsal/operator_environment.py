"""The environment that the training-operator gives each pod of a PyTorchJob.

Source: kubeflow/training-operator v1.9.0, pkg/controller.v1/pytorch/{envvar,master,elastic}.go and
pkg/apis/kubeflow.org/v1/pytorch_defaults.go. The operator appends these to the container's own
variables, and the last of two entries with one name wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DEFAULT_PORT = 23456
PORT_NAME = "pytorchjob-port"
CONTAINER = "pytorch"

Job = Mapping[str, Any]  # a PyTorchJob as a dictionary


def operator_environment(job: Job) -> dict[str, dict[str, str]]:
    """Pod name -> the variables that the operator appends, in its order; the master first."""
    name = job["metadata"]["name"]
    specs = job["spec"]["pytorchReplicaSpecs"]
    total = sum(_replicas(spec) for spec in specs.values())
    environments = {}
    for kind in ("Master", "Worker"):
        for index in range(_replicas(specs[kind]) if kind in specs else 0):
            variables = {"PYTHONUNBUFFERED": "1"}
            if "Master" in specs:
                rank = 0 if kind == "Master" else index + 1
                variables |= _master_variables(job, rank, total)
            if _nproc(job) is not None:
                variables["PET_NPROC_PER_NODE"] = str(_nproc(job))
            if "elasticPolicy" in job["spec"]:
                variables |= _elastic_variables(job)
            else:
                variables["PET_NNODES"] = str(total)
            environments[f"{name}-{kind.lower()}-{index}"] = variables
    return environments


def container_of(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """The container `pytorch` of a replica, else the first."""
    containers = spec["template"]["spec"]["containers"]
    found: Mapping[str, Any] = next(
        (c for c in containers if c["name"] == CONTAINER), containers[0]
    )
    return found


def replica_of(job: Job, pod: str) -> Mapping[str, Any]:
    """The replica spec that a pod of this job is made from."""
    kind = pod.removeprefix(job["metadata"]["name"] + "-").rpartition("-")[0]
    spec: Mapping[str, Any] = job["spec"]["pytorchReplicaSpecs"][kind.capitalize()]
    return spec


def _replicas(spec: Mapping[str, Any]) -> int:
    return int(spec.get("replicas", 1))


def _nproc(job: Job) -> str | None:
    given = job["spec"].get("nprocPerNode")
    if given is not None:
        return str(given)
    return None if "nProcPerNode" in job["spec"].get("elasticPolicy", {}) else "auto"


def _master_variables(job: Job, rank: int, total: int) -> dict[str, str]:
    address = f"{job['metadata']['name']}-master-0"
    port = str(_port(job["spec"]["pytorchReplicaSpecs"]["Master"]))
    nproc = _nproc(job) or ""
    processes = int(nproc) if nproc.isdigit() else 1  # `auto` counts as one
    return {
        "MASTER_PORT": port,
        "PET_MASTER_PORT": port,
        "MASTER_ADDR": address,
        "PET_MASTER_ADDR": address,
        "WORLD_SIZE": str(total * processes),
        "RANK": str(rank),  # a node rank, in RANK too
        "PET_NODE_RANK": str(rank),
    }


def _elastic_variables(job: Job) -> dict[str, str]:
    policy = job["spec"]["elasticPolicy"]
    worker = job["spec"]["pytorchReplicaSpecs"]["Worker"]
    host = policy.get("rdzvHost", f"{job['metadata']['name']}-worker-0")
    port = policy.get("rdzvPort", _port(worker))
    # Either bound stands for the other; without both the job has its number of workers.
    least = policy.get("minReplicas", policy.get("maxReplicas", _replicas(worker)))
    most = policy.get("maxReplicas", least)
    variables = {
        "PET_RDZV_ENDPOINT": f"{host}:{port}",
        "PET_RDZV_BACKEND": policy.get("rdzvBackend", "c10d"),
        "PET_NNODES": f"{least}:{most}",
    }
    if "maxRestarts" in policy:
        variables["PET_MAX_RESTARTS"] = str(policy["maxRestarts"])
    if "rdzvId" in policy:
        variables["PET_RDZV_ID"] = policy["rdzvId"]
    if policy.get("rdzvConf"):
        pairs = [f"{entry['key']}={entry['value']}" for entry in policy["rdzvConf"]]
        variables["PET_RDZV_CONF"] = ",".join(pairs)
    if "nProcPerNode" in policy:
        variables["PET_NPROC_PER_NODE"] = str(policy["nProcPerNode"])
    if policy.get("standalone"):
        variables["PET_STANDALONE"] = ""
    return variables


def _port(spec: Mapping[str, Any]) -> int:
    ports = container_of(spec).get("ports", [])
    return next(
        (int(p["containerPort"]) for p in ports if p.get("name") == PORT_NAME), DEFAULT_PORT
    )
