"""The chart by the real Helm engine: lint, schema, names, and what each value changes."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml
from omegaconf import OmegaConf

from app.errors import ConfigError
from app.rehearsal.chart import Release, render, render_texts
from tests.deploy.validation import complaints

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm"
CI_VALUES = sorted((CHART / "ci").glob("*-values.yaml"))
RELEASE = Release("pets", "team-a")


def of_kind(documents: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    found = [document for document in documents if document["kind"] == kind]
    assert len(found) == 1, f"{len(found)} objects of kind {kind}"
    return found[0]


def rendered(values: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The job and its ConfigMap."""
    documents = render(CHART, values, RELEASE)
    return of_kind(documents, "PyTorchJob"), of_kind(documents, "ConfigMap")


def container(job: dict[str, Any], kind: str = "Master") -> dict[str, Any]:
    found: dict[str, Any] = job["spec"]["pytorchReplicaSpecs"][kind]["template"]["spec"][
        "containers"
    ][0]
    return found


def test_there_is_a_values_file_for_each_shape_of_job() -> None:
    assert len(CI_VALUES) >= 4


@pytest.mark.parametrize("file", [None, *CI_VALUES], ids=lambda f: f.stem if f else "default")
def test_lint_has_no_warning_and_every_object_would_be_accepted(file: Path | None) -> None:
    values = helm_python.values_from_yaml(file.read_text()) if file else {}

    documents = render(CHART, values, RELEASE)

    report = helm_python.lint(CHART, values, strict=True, kube_version="v1.32.0")
    assert [m["error"] for m in report["messages"] if m["severity"] >= 2] == []
    assert [complaint for document in documents for complaint in complaints(document)] == []
    assert {d["kind"] for d in documents} == {"ConfigMap", "PyTorchJob", "ServiceAccount"}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown key": ({"replicas": 2}, "replicas"),
    "an unknown key below": ({"image": {"tagg": "x"}}, "tagg"),
    "processes as a string": ({"nprocPerNode": "8"}, "nprocPerNode"),
    "no process": ({"nprocPerNode": 0}, "nprocPerNode"),
    "a word for processes": ({"nprocPerNode": "auto"}, "nprocPerNode"),
    "fewer than no workers": ({"workers": -1}, "workers"),
    "half a worker": ({"workers": 1.5}, "workers"),
    "no layer": ({"config": {"layers": []}}, "layers"),
    "a path out of the chart": ({"config": {"layers": ["../../values.yaml"]}}, "layers"),
    "an override without value": ({"run": {"overrides": ["lr"]}}, "overrides"),
    "an endpoint without scheme": ({"s3": {"endpointUrl": "minio:9000"}}, "endpointUrl"),
    "a key in the values": ({"s3": {"secretAccessKey": "x"}}, "secretAccessKey"),
    "a policy that is none": ({"runPolicy": {"cleanPodPolicy": "Some"}}, "cleanPodPolicy"),
    "a name that is none": ({"fullnameOverride": "My_Run"}, "fullnameOverride"),
    "too little time to save": ({"preemption": {"gracePeriodSeconds": 10}}, "gracePeriodSeconds"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_value_is_refused_by_name(case: str) -> None:
    values, name = REFUSED[case]

    with pytest.raises(ConfigError, match=name):
        render(CHART, values, RELEASE)


def test_mistakes_that_a_schema_cannot_see_are_listed_at_once() -> None:
    values = {
        "config": {"layers": ["no_such_model.yaml", "nor_this.yaml"]},
        "env": [{"name": "MASTER_ADDR", "value": "x"}],
    }

    with pytest.raises(ConfigError) as caught:
        render(CHART, values, RELEASE)

    for part in ("no_such_model.yaml", "nor_this.yaml", "MASTER_ADDR is set by the operator"):
        assert part in caught.value.what


def test_a_release_name_that_starts_with_a_digit_is_refused() -> None:
    with pytest.raises(ConfigError, match="has to start with a letter"):
        render(CHART, {}, Release("2b-run", "team-a"))


def test_too_large_a_configuration_is_refused_before_the_cluster_does() -> None:
    layer = {"prompts": ["x" * 1000] * 1000}

    with pytest.raises(ConfigError, match="900 KiB"):
        render(CHART, {"config": {"layers": [layer]}}, RELEASE)


def test_nproc_per_node_is_a_string_and_follows_the_gpus() -> None:
    for values, expected in (
        ({"gpusPerPod": 4}, "4"),
        ({"gpusPerPod": 0}, "1"),
        ({"gpusPerPod": 8, "nprocPerNode": 2}, "2"),
    ):
        job, _ = rendered(values)

        assert job["spec"]["nprocPerNode"] == expected


def test_master_and_workers_run_the_same_pod() -> None:
    job, _ = rendered({"workers": 3})

    specs = job["spec"]["pytorchReplicaSpecs"]
    assert specs["Master"]["replicas"] == 1
    assert specs["Worker"]["replicas"] == 3
    assert specs["Master"]["template"] == specs["Worker"]["template"]
    assert {spec["restartPolicy"] for spec in specs.values()} == {"ExitCode"}


def test_layers_are_mounted_and_named_in_order_and_overrides_come_last() -> None:
    values = {
        "run": {
            "id": "my-run",
            "args": ["--save", "s3://b/runs", 10000000],
            "overrides": ["a.b=c"],
        },
        "config": {"layers": ["cogvideox_2b_lora.yaml", {"args": {"lr": 1e-7}}, "sft.yaml"]},
    }

    job, config = rendered(values)

    assert container(job)["args"] == [
        *("train", "--base"),
        "/etc/cogvx/config/00-cogvideox_2b_lora.yaml",
        "/etc/cogvx/config/01-inline.yaml",
        "/etc/cogvx/config/02-sft.yaml",
        *("--run-id", "my-run", "--save", "s3://b/runs", "10000000", "a.b=c"),
    ]
    assert set(config["data"]) == {
        *("00-cogvideox_2b_lora.yaml", "01-inline.yaml", "02-sft.yaml"),
    }
    mounts = {mount["name"]: mount["mountPath"] for mount in container(job)["volumeMounts"]}
    assert mounts["config"] == "/etc/cogvx/config"


def test_a_stock_layer_is_the_file_of_the_repository() -> None:
    _, config = rendered({"config": {"layers": ["cogvideox_2b_lora.yaml"]}})

    written = config["data"]["00-cogvideox_2b_lora.yaml"]
    assert yaml.safe_load(written) == yaml.safe_load(
        (ROOT / "configs" / "cogvideox_2b_lora.yaml").read_text()
    )


def test_the_charts_copy_of_the_configs_is_current() -> None:
    ours = {file.name: file.read_text() for file in (ROOT / "configs").glob("*.yaml")}
    copied = {file.name: file.read_text() for file in (CHART / "files/configs").glob("*.yaml")}

    assert copied == ours, "run: make manifests"


def test_numbers_of_an_inline_layer_keep_their_value_and_type() -> None:
    layer = {"args": {"lr": 1e-7, "train_iters": 10000000, "scale": 1.15258426, "on": True}}

    _, config = rendered({"config": {"layers": [layer]}})

    read = OmegaConf.to_container(OmegaConf.create(config["data"]["00-inline.yaml"]))
    assert read == layer
    assert isinstance(read["args"]["train_iters"], int)  # type: ignore[index,call-overload]


def test_a_number_from_a_values_file_keeps_its_value_too(tmp_path: Path) -> None:
    file = tmp_path / "v.yaml"
    file.write_text("config: {layers: [{args: {lr: 1e-7, train_iters: 10000000}}]}\n")

    _, config = rendered(helm_python.values_from_yaml(file.read_text()))

    read = OmegaConf.create(config["data"]["00-inline.yaml"])
    assert (read.args.lr, read.args.train_iters) == (1e-7, 10000000)


@pytest.mark.parametrize(
    "change",
    [
        {"config": {"layers": [{"args": {"lr": 0.5}}]}},
        {"image": {"tag": "2"}},
        {"workers": 2},
        {"nprocPerNode": 2},
        {"env": [{"name": "A", "value": "b"}]},
        {"run": {"args": ["--lr", "1"]}},
    ],
)
def test_whatever_the_pods_would_run_changes_both_names(change: dict[str, Any]) -> None:
    job, config = rendered()
    changed_job, changed_config = rendered(change)

    assert job["metadata"]["name"] == config["metadata"]["name"]
    assert changed_job["metadata"]["name"] == changed_config["metadata"]["name"]
    assert changed_job["metadata"]["name"] != job["metadata"]["name"]


def test_what_running_pods_do_not_see_keeps_the_names() -> None:
    job, _ = rendered()
    changed, _ = rendered(
        {"runPolicy": {"ttlSecondsAfterFinished": 60}, "jobLabels": {"team": "video"}}
    )

    assert changed["metadata"]["name"] == job["metadata"]["name"]
    assert changed["spec"]["runPolicy"]["ttlSecondsAfterFinished"] == 60


def test_the_config_map_is_immutable_and_the_pods_mount_it_by_its_hashed_name() -> None:
    job, config = rendered()

    volumes = job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["volumes"]
    mounted = next(volume for volume in volumes if volume["name"] == "config")
    assert config["immutable"] is True
    assert mounted["configMap"]["name"] == config["metadata"]["name"]
    assert re.fullmatch(r"pets-cogvx-train-[0-9a-f]{8}", config["metadata"]["name"])


def test_the_longest_release_name_leaves_room_for_pod_names() -> None:
    documents = render(CHART, {"workers": 1}, Release("r" + "x" * 52, "team-a"))

    assert len(of_kind(documents, "PyTorchJob")["metadata"]["name"]) <= 50


def test_secrets_are_named_and_never_written() -> None:
    values = {"s3": {"existingSecret": "bucket-keys", "secretKeys": {"accessKeyId": "user"}}}

    texts = render_texts(CHART, values, RELEASE)
    job, config = rendered(values)

    variables = {entry["name"]: entry for entry in container(job)["env"]}
    assert variables["AWS_ACCESS_KEY_ID"]["valueFrom"] == {
        "secretKeyRef": {"name": "bucket-keys", "key": "user"}
    }
    assert "value" not in variables["AWS_SECRET_ACCESS_KEY"]
    assert "AWS_" not in "".join(config["data"].values())
    assert not any("kind: Secret" in text for text in texts.values())


def test_without_a_secret_no_key_is_asked_for() -> None:
    job, _ = rendered({"s3": {"endpointUrl": "http://s3:9000", "region": "eu-1"}})

    values = {entry["name"]: entry.get("value") for entry in container(job)["env"]}
    assert values == {
        "COGVX_GRACE_PERIOD_S": "300",
        "AWS_ENDPOINT_URL_S3": "http://s3:9000",
        "AWS_REGION": "eu-1",
    }


def test_the_pod_fits_a_restricted_namespace() -> None:
    job, _ = rendered()

    spec = job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
    assert spec["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "runAsGroup": 10001,
        "fsGroup": 10001,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container(job)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert spec["automountServiceAccountToken"] is False
    assert {volume["name"] for volume in spec["volumes"] if "emptyDir" in volume} == {
        *("scratch", "tmp", "shm"),
    }


def test_the_training_container_has_no_readiness_probe() -> None:
    job, _ = rendered()

    assert not {key for key in container(job) if key.endswith("Probe")}


def test_gpus_are_limits_and_other_resources_stay() -> None:
    job, _ = rendered({"gpusPerPod": 2, "resources": {"limits": {"memory": "10Gi"}}})
    alone, _ = rendered({"gpusPerPod": 0})

    assert container(job)["resources"]["limits"] == {"memory": "10Gi", "nvidia.com/gpu": 2}
    assert "nvidia.com/gpu" not in container(alone)["resources"]["limits"]


def test_the_notes_name_the_job_and_how_to_read_its_log() -> None:
    texts = render_texts(CHART, {"workers": 1}, RELEASE)
    job, _ = rendered({"workers": 1})

    notes = next(text for path, text in texts.items() if path.endswith("NOTES.txt"))
    assert job["metadata"]["name"] in notes
    assert "job-role=master" in notes
    assert "init container" in notes


def test_every_value_is_in_the_schema_and_has_a_default() -> None:
    schema = yaml.safe_load((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def compare(schema: dict[str, Any], values: dict[str, Any], path: str) -> list[str]:
        properties = copy.deepcopy(schema.get("properties", {}))
        properties.pop("global", None)
        wrong = [f"{path}{name}" for name in set(properties) ^ set(values)]
        for name in set(properties) & set(values):
            if "properties" in properties[name] and isinstance(values[name], dict):
                wrong += compare(properties[name], values[name], f"{path}{name}.")
        return wrong

    resources = values.pop("resources")
    schema["properties"].pop("resources")
    assert compare(schema, values, "") == []
    assert set(resources) == {"requests", "limits"}
