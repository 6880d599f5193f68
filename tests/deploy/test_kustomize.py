"""The kustomize base is the chart's job, and kustomize itself builds the overlays."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.rehearsal.chart import render
from tests.deploy.validation import complaints

ROOT = Path(__file__).parents[2]
KUSTOMIZE = ROOT / "deploy" / "kustomize"
BASE = KUSTOMIZE / "base"


def base_job() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((BASE / "pytorchjob.yaml").read_text())
    return found


def test_the_base_is_what_the_chart_renders() -> None:
    chart = next(
        d for d in render(ROOT / "deploy/helm", {"workers": 1}) if d["kind"] == "PyTorchJob"
    )
    base = base_job()
    for job in (base, chart):
        for replica in job["spec"]["pytorchReplicaSpecs"].values():
            volumes = replica["template"]["spec"]["volumes"]
            next(v for v in volumes if v["name"] == "config")["configMap"]["name"] = "any"

    assert base["spec"] == chart["spec"]


def test_the_base_would_be_accepted() -> None:
    account = yaml.safe_load((BASE / "serviceaccount.yaml").read_text())

    assert complaints(base_job()) == []
    assert complaints(account) == []


def test_the_layers_of_the_base_are_the_repositorys() -> None:
    for name in ("00-cogvideox_2b_lora.yaml", "01-sft.yaml"):
        original = ROOT / "configs" / name.partition("-")[2]

        assert (BASE / "config" / name).read_text() == original.read_text(), "run: make manifests"


def test_the_base_generates_the_layers_that_the_job_names() -> None:
    kustomization = yaml.safe_load((BASE / "kustomization.yaml").read_text())
    files = [Path(file).name for file in kustomization["configMapGenerator"][0]["files"]]

    words = base_job()["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"][
        0
    ]["args"]

    assert [Path(word).name for word in words if word.startswith("/etc/cogvx")] == files


def build(folder: Path) -> list[dict[str, Any]]:
    """What `kubectl apply -k` would send; needs kustomize or kubectl, and fails without them."""
    if kustomize := shutil.which("kustomize"):
        command = [kustomize, "build", str(folder)]
    else:
        kubectl = shutil.which("kubectl")
        assert kubectl, "install kustomize or kubectl 1.27 or later"
        command = [kubectl, "kustomize", str(folder)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return list(yaml.safe_load_all(text))


# Not in `make test`: that one needs Python, make and git only.
@pytest.mark.slow
@pytest.mark.parametrize("overlay", ["single-node", "multi-node"])
def test_an_overlay_builds_into_objects_that_would_be_accepted(overlay: str) -> None:
    documents = build(KUSTOMIZE / "overlays" / overlay)

    assert [complaint for document in documents for complaint in complaints(document)] == []


@pytest.mark.slow
def test_a_suffix_and_a_hash_are_followed_into_both_pods() -> None:
    documents = {d["kind"]: d for d in build(KUSTOMIZE / "overlays" / "multi-node")}

    specs = documents["PyTorchJob"]["spec"]["pytorchReplicaSpecs"]
    assert documents["PyTorchJob"]["metadata"]["name"] == "cogvx-train-r1"
    assert specs["Worker"]["replicas"] == 3
    assert specs["Master"]["template"] == specs["Worker"]["template"]
    pod = specs["Worker"]["template"]["spec"]
    config = next(volume for volume in pod["volumes"] if volume["name"] == "config")
    assert config["configMap"]["name"] == documents["ConfigMap"]["metadata"]["name"]
    assert pod["serviceAccountName"] == documents["ServiceAccount"]["metadata"]["name"]
    assert pod["containers"][0]["image"] == "registry.example.com/cogvx-train:0.1.0"
    names = [entry["name"] for entry in pod["containers"][0]["env"]]
    assert set(names) >= {"COGVX_GRACE_PERIOD_S", "AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID"}


@pytest.mark.slow
def test_a_single_node_has_no_worker() -> None:
    job = next(d for d in build(KUSTOMIZE / "overlays/single-node") if d["kind"] == "PyTorchJob")

    assert list(job["spec"]["pytorchReplicaSpecs"]) == ["Master"]
