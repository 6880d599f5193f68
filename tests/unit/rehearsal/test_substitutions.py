"""What is replaced in a pod to make it a local process, and that nothing else is."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from app.errors import ConfigError
from app.rehearsal.substitutions import LocalProcess, Surroundings, localize

SECRETS = {"keys": {"id": "AK", "secret": "SK"}}


def documents(**container: Any) -> list[dict[str, Any]]:
    spec = {
        "containers": [
            {
                "name": "pytorch",
                "image": "x",
                "args": ["train", "--base", "/etc/cogvx/config/00-a.yaml", "--save=/scratch/out"],
                "env": [
                    {"name": "CACHE", "value": "/scratch/cache:/scratch2:s3://b/scratch/x"},
                    {
                        "name": "AWS_ACCESS_KEY_ID",
                        "valueFrom": {"secretKeyRef": {"name": "keys", "key": "id"}},
                    },
                    {
                        "name": "AWS_SESSION_TOKEN",
                        "valueFrom": {
                            "secretKeyRef": {"name": "keys", "key": "token", "optional": True}
                        },
                    },
                    {"name": "RANK", "value": "99"},
                ],
                "volumeMounts": [
                    {"name": "config", "mountPath": "/etc/cogvx/config"},
                    {"name": "scratch", "mountPath": "/scratch"},
                    {"name": "tmp", "mountPath": "/tmp"},
                    {"name": "shm", "mountPath": "/dev/shm"},
                ],
                **container,
            }
        ],
        "volumes": [
            {"name": "config", "configMap": {"name": "layers"}},
            {"name": "scratch", "emptyDir": {}},
            {"name": "tmp", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
        ],
    }
    replica = {"replicas": 1, "template": {"spec": spec}}
    return [
        {
            "kind": "ConfigMap",
            "metadata": {"name": "layers"},
            "data": {"00-a.yaml": "cache: /scratch/cache\nvae: /weights/3d-vae.pt\n"},
        },
        {
            "kind": "PyTorchJob",
            "metadata": {"name": "job"},
            "spec": {
                "nprocPerNode": "1",
                "pytorchReplicaSpecs": {"Master": replica, "Worker": replica},
            },
        },
    ]


def surroundings(root: Path, **others: Any) -> Surroundings:
    return Surroundings(root=root, master_port=4321, secrets=SECRETS, **others)


def worker(root: Path, **others: Any) -> LocalProcess:
    job = localize(documents(), surroundings(root, **others))
    return next(process for process in job.processes if process.pod == "job-worker-0")


def test_the_command_line_is_the_images_entry_point_and_the_manifests_words(tmp_path: Path) -> None:
    process = worker(tmp_path)

    assert process.argv == (
        *(sys.executable, "-m", "app", "launch", "train", "--base"),
        f"{tmp_path}/job-worker-0/etc/cogvx/config/00-a.yaml",
        f"--save={tmp_path}/job-worker-0/scratch/out",
    )


def test_overrides_come_last(tmp_path: Path) -> None:
    assert worker(tmp_path, overrides=("a.b=1",)).argv[-1] == "a.b=1"


def test_paths_are_replaced_as_whole_paths_only(tmp_path: Path) -> None:
    scratch = f"{tmp_path}/job-worker-0/scratch"

    assert worker(tmp_path).environ["CACHE"] == f"{scratch}/cache:/scratch2:s3://b/scratch/x"


def test_config_files_are_written_with_local_paths(tmp_path: Path) -> None:
    process = worker(tmp_path, weights={"/weights": Path("/tiny")})

    text = (process.folder / "etc/cogvx/config/00-a.yaml").read_text()
    assert text == f"cache: {tmp_path}/job-worker-0/scratch/cache\nvae: /tiny/3d-vae.pt\n"


def test_paths_of_this_machine_stay_even_below_a_mounted_folder(tmp_path: Path) -> None:
    root = Path("/tmp") / tmp_path.name
    words = ["--a", f"{root}/tiny/x", "--b", "/tmp/x", "--c", "/tmp/tiny/vae.pt"]

    job = localize(
        documents(args=words, volumeMounts=[{"name": "tmp", "mountPath": "/tmp"}]),
        Surroundings(root=tmp_path, master_port=1, secrets=SECRETS, weights={"/w": root / "tiny"}),
    )

    pod = f"{tmp_path}/job-master-0"
    assert job.processes[0].argv[4:] == (
        *("--a", f"{root}/tiny/x", "--b", f"{pod}/tmp/x", "--c", f"{pod}/tmp/tiny/vae.pt"),
    )


def test_secrets_become_variables_and_an_optional_one_may_be_absent(tmp_path: Path) -> None:
    environ = worker(tmp_path).environ

    assert environ["AWS_ACCESS_KEY_ID"] == "AK"
    assert "AWS_SESSION_TOKEN" not in environ


def test_the_operators_variables_win_and_only_the_address_is_replaced(tmp_path: Path) -> None:
    environ = worker(tmp_path).environ

    assert {name: environ[name] for name in ("RANK", "WORLD_SIZE", "PET_NODE_RANK")} == {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "PET_NODE_RANK": "1",
    }
    assert environ["MASTER_ADDR"] == environ["PET_MASTER_ADDR"] == "127.0.0.1"
    assert environ["MASTER_PORT"] == environ["PET_MASTER_PORT"] == "4321"


def test_variables_of_this_machine_that_a_pod_would_not_have_stay_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_PROFILE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID", "PET_RDZV_ENDPOINT"):
        monkeypatch.setenv(name, "mine")
    monkeypatch.setenv("CARPET_SIZE", "stays")

    environ = worker(tmp_path).environ

    assert "mine" not in environ.values()
    assert environ["CARPET_SIZE"] == "stays"


def test_the_images_caches_lie_in_the_pods_scratch(tmp_path: Path) -> None:
    assert worker(tmp_path).environ["HOME"] == f"{tmp_path}/job-worker-0/scratch/home"


def test_the_table_names_every_row_once(tmp_path: Path) -> None:
    job = localize(
        documents(),
        surroundings(tmp_path, weights={"/weights": Path("/tiny")}, overrides=("vae=/t.pt",)),
    )

    assert [(row.what, row.in_the_pod, row.here) for row in job.table] == [
        ("the master's address", "job-master-0:23456", "127.0.0.1:4321"),
        ("volume mount", "/etc/cogvx/config", f"{tmp_path}/<pod>/etc/cogvx/config"),
        ("volume mount", "/scratch", f"{tmp_path}/<pod>/scratch"),
        ("volume mount", "/tmp", f"{tmp_path}/<pod>/tmp"),
        ("weights", "/weights", "/tiny"),
        ("weights", "vae", "/t.pt"),
    ]


@pytest.mark.parametrize(
    ("container", "message"),
    [
        (
            {"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "other", "key": "k"}}}]},
            "no Secret other",
        ),
        (
            {"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "k"}}}]},
            "no key k in keys",
        ),
        ({"envFrom": [{"configMapRef": {"name": "other"}}]}, "no ConfigMap other"),
    ],
)
def test_what_the_cluster_would_refuse_is_refused(
    tmp_path: Path, container: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        localize(documents(**container), surroundings(tmp_path))


def test_a_whole_secret_can_be_taken_with_a_prefix(tmp_path: Path) -> None:
    source = [{"prefix": "X_", "secretRef": {"name": "keys"}}]

    job = localize(documents(envFrom=source), surroundings(tmp_path))

    assert job.processes[0].environ["X_id"] == "AK"
