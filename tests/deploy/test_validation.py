"""The judges of the other tests here do refuse what a cluster would refuse."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.rehearsal.chart import render
from tests.deploy.validation import complaints

CHART = Path(__file__).parents[2] / "deploy" / "helm"
Job = dict[str, Any]


@pytest.fixture(scope="module")
def job() -> Job:
    return next(d for d in render(CHART, {"workers": 1}) if d["kind"] == "PyTorchJob")


def master(job: Job) -> dict[str, Any]:
    found: dict[str, Any] = job["spec"]["pytorchReplicaSpecs"]["Master"]
    return found


def pod(job: Job) -> dict[str, Any]:
    found: dict[str, Any] = master(job)["template"]["spec"]
    return found


DAMAGES: dict[str, Callable[[Job], object]] = {
    "a number for nprocPerNode": lambda j: j["spec"].update(nprocPerNode=8),
    "an unknown field of the spec": lambda j: j["spec"].update(nproc="8"),
    "an unknown field of the pod": lambda j: pod(j).update(restartPolicies="Never"),
    "an unknown field of the container": lambda j: pod(j)["containers"][0].update(arg=["x"]),
    "two masters": lambda j: master(j).update(replicas=2),
    "masters not counted": lambda j: master(j).pop("replicas"),
    "no container named pytorch": lambda j: pod(j)["containers"][0].update(name="trainer"),
    "no image": lambda j: pod(j)["containers"][0].pop("image"),
    "a third kind of replica": lambda j: j["spec"]["pytorchReplicaSpecs"].update(Chief=master(j)),
    "a misspelt restart policy": lambda j: master(j).update(restartPolicy="OnExitCode"),
    "a name with a dot": lambda j: j["metadata"].update(name="a.b"),
    "a name without room": lambda j: j["metadata"].update(name="a" * 60),
    "elastic without workers": lambda j: (
        j["spec"]["pytorchReplicaSpecs"].pop("Worker"),
        j["spec"].update(elasticPolicy={}),
    ),
}


def test_an_undamaged_job_is_accepted(job: Job) -> None:
    assert complaints(job) == []


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_job_is_refused(job: Job, damage: str) -> None:
    damaged = copy.deepcopy(job)
    DAMAGES[damage](damaged)

    assert complaints(damaged)
