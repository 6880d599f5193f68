from __future__ import annotations

import pytest

from app.checkpoint import layout
from app.checkpoint.layout import CheckpointRef
from app.errors import DataError
from app.storage.objects import OWN_KEY

REF = CheckpointRef(attempt=7, step=1000)
KEYS = [
    layout.RUN,
    layout.COMPLETE,
    layout.PROGRESS,
    layout.attempt_key(7, "3f9c2a1b"),
    layout.config_key(7, "3f9c2a1b"),
    REF.manifest,
    REF.file("weights-00000-of-00002.safetensors"),
    layout.samples_index_key(1000),
    layout.quarantine_key(7, 3),
    layout.log_key(7, 0),
    layout.export_folder(10000) + "pytorch_lora_weights.safetensors",
]


def test_keys_are_those_of_the_layout() -> None:
    assert KEYS == [
        "run.json",
        "complete.json",
        "progress.json",
        "attempts/000007-3f9c2a1b.json",
        "config/000007-3f9c2a1b.yaml",
        "checkpoints/step-0000001000.000007/manifest.json",
        "checkpoints/step-0000001000.000007/weights-00000-of-00002.safetensors",
        "samples/step-0000001000/samples.json",
        "quarantine/000007-r0003.jsonl",
        "logs/000007-r0000.txt",
        "export/step-0000010000/pytorch_lora_weights.safetensors",
    ]


def test_keys_are_plain_and_none_is_a_folder_of_another() -> None:
    assert all(OWN_KEY.fullmatch(key) for key in KEYS)
    assert not any(a != b and b.startswith(a + "/") for a in KEYS for b in KEYS)


def test_a_checkpoint_has_the_name_of_step_and_attempt() -> None:
    assert REF.name == "step-0000001000.000007"
    assert CheckpointRef.parse(REF.name) == REF


@pytest.mark.parametrize(
    "name", ["", "latest", "step-1000.7", "step-0000001000", "x-step-0000001000.000007", "../x"]
)
def test_other_names_are_no_checkpoints(name: str) -> None:
    assert CheckpointRef.parse(name) is None


def test_the_order_of_names_is_the_order_of_steps() -> None:
    steps = [0, 9, 10, 999, 1000, 123456]
    names = [CheckpointRef(attempt=1, step=step).name for step in steps]

    assert sorted(names) == names


def test_the_attempt_is_read_from_a_key() -> None:
    assert layout.attempt_of_key(REF.file("optim-00000-of-00001.safetensors")) == 7
    assert layout.attempt_of_key("metrics/000007-000001.jsonl") == 7
    assert layout.attempt_of_key(layout.samples_index_key(3)) is None
    assert layout.attempt_of_key("checkpoints/step-12/x") is None


def test_a_run_lies_below_its_save_prefix() -> None:
    assert layout.run_url("s3://bucket/out/", "my-run.2") == "s3://bucket/out/my-run.2"
    with pytest.raises(DataError, match="run id"):
        layout.run_url("/out", "../other")
