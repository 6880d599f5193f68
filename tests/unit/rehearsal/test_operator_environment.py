"""The operator's variables, typed from its documentation and source, examples A to J.

Job `cogvx`; kubeflow/training-operator v1.9.0.
"""

from __future__ import annotations

from typing import Any

from app.rehearsal.operator_environment import operator_environment, replica_of


def job(master: int | None, workers: int | None, **spec: Any) -> dict[str, Any]:
    replicas = {}
    for kind, count in (("Master", master), ("Worker", workers)):
        if count is not None:
            containers = [{"name": "pytorch", "image": "x"}]
            replicas[kind] = {"replicas": count, "template": {"spec": {"containers": containers}}}
    return {
        "kind": "PyTorchJob",
        "metadata": {"name": "cogvx"},
        "spec": {"pytorchReplicaSpecs": replicas, **spec},
    }


def test_a_number_of_processes_counts_into_the_world() -> None:
    found = operator_environment(job(1, 3, nprocPerNode="8"))

    common = {
        "PYTHONUNBUFFERED": "1",
        "MASTER_PORT": "23456",
        "PET_MASTER_PORT": "23456",
        "MASTER_ADDR": "cogvx-master-0",
        "PET_MASTER_ADDR": "cogvx-master-0",
        "WORLD_SIZE": "32",
        "PET_NPROC_PER_NODE": "8",
        "PET_NNODES": "4",
    }
    assert found == {
        "cogvx-master-0": common | {"RANK": "0", "PET_NODE_RANK": "0"},
        "cogvx-worker-0": common | {"RANK": "1", "PET_NODE_RANK": "1"},
        "cogvx-worker-1": common | {"RANK": "2", "PET_NODE_RANK": "2"},
        "cogvx-worker-2": common | {"RANK": "3", "PET_NODE_RANK": "3"},
    }
    assert list(found) == ["cogvx-master-0", "cogvx-worker-0", "cogvx-worker-1", "cogvx-worker-2"]


def test_b_c_d_a_word_for_processes_counts_as_one() -> None:
    absent = operator_environment(job(1, 3))["cogvx-worker-2"]
    gpu = operator_environment(job(1, 3, nprocPerNode="gpu"))["cogvx-worker-2"]
    cpu = operator_environment(job(1, 3, nprocPerNode="cpu"))["cogvx-worker-2"]

    assert (absent["WORLD_SIZE"], absent["PET_NPROC_PER_NODE"]) == ("4", "auto")
    assert (gpu["WORLD_SIZE"], gpu["PET_NPROC_PER_NODE"]) == ("4", "gpu")
    assert (cpu["WORLD_SIZE"], cpu["PET_NPROC_PER_NODE"]) == ("4", "cpu")


def test_e_one_process_per_pod() -> None:
    found = operator_environment(job(1, 3, nprocPerNode="1"))["cogvx-worker-0"]

    assert (found["WORLD_SIZE"], found["RANK"], found["PET_NPROC_PER_NODE"]) == ("4", "1", "1")


def test_f_elastic_workers_have_an_endpoint_and_no_rank() -> None:
    policy = {
        "minReplicas": 2,
        "maxReplicas": 4,
        "maxRestarts": 10,
        "rdzvId": "cogvx",
        "rdzvConf": [
            {"key": "timeout", "value": "1800"},
            {"key": "last_call_timeout", "value": "30"},
        ],
    }

    found = operator_environment(job(None, 4, nprocPerNode="8", elasticPolicy=policy))

    assert found["cogvx-worker-3"] == {
        "PYTHONUNBUFFERED": "1",
        "PET_NPROC_PER_NODE": "8",
        "PET_RDZV_ENDPOINT": "cogvx-worker-0:23456",
        "PET_RDZV_BACKEND": "c10d",
        "PET_NNODES": "2:4",
        "PET_MAX_RESTARTS": "10",
        "PET_RDZV_ID": "cogvx",
        "PET_RDZV_CONF": "timeout=1800,last_call_timeout=30",
    }


def test_g_elastic_with_a_master_has_both_kinds_of_variables() -> None:
    found = operator_environment(job(1, 3, nprocPerNode="8", elasticPolicy={}))["cogvx-master-0"]

    assert found["PET_NNODES"] == "3:3"
    assert found["PET_RDZV_ENDPOINT"] == "cogvx-worker-0:23456"
    assert found["MASTER_ADDR"] == "cogvx-master-0"


def test_h_the_deprecated_number_of_processes() -> None:
    found = operator_environment(job(None, 4, elasticPolicy={"nProcPerNode": 8}))

    assert found["cogvx-worker-0"]["PET_NPROC_PER_NODE"] == "8"
    assert found["cogvx-worker-0"]["PET_NNODES"] == "4:4"


def test_i_workers_alone_get_no_rendezvous() -> None:
    found = operator_environment(job(None, 4, nprocPerNode="8"))["cogvx-worker-1"]

    assert found == {"PYTHONUNBUFFERED": "1", "PET_NPROC_PER_NODE": "8", "PET_NNODES": "4"}


def test_j_standalone_is_the_empty_string() -> None:
    found = operator_environment(job(None, 1, elasticPolicy={"standalone": True}))

    assert found["cogvx-worker-0"]["PET_STANDALONE"] == ""


def test_the_port_is_the_one_that_the_container_names() -> None:
    spec = job(1, 1, nprocPerNode="1")
    container = spec["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"][0]
    container["ports"] = [{"name": "metrics", "containerPort": 9}]
    container["ports"] += [{"name": "pytorchjob-port", "containerPort": 7777}]

    assert operator_environment(spec)["cogvx-worker-0"]["MASTER_PORT"] == "7777"


def test_a_pod_is_found_back_by_its_name() -> None:
    spec = job(1, 3)

    worker = replica_of(spec, "cogvx-worker-2")

    assert worker is spec["spec"]["pytorchReplicaSpecs"]["Worker"]
