"""The record of a run: canonical, without secrets, the same for the same request."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import yaml

from app.config.snapshot import digest, masked, snapshot
from tests.support.configs import TINY, base, layer, load


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ({"api_key": "abc"}, {"api_key": "***"}),
        ({"aws_secret_access_key": "abc"}, {"aws_secret_access_key": "***"}),
        ({"password": ["a", "b"]}, {"password": ["***", "***"]}),
        ({"token": None, "hf_token": "x"}, {"token": None, "hf_token": "***"}),
        ({"save": "s3://key:secret@host/b"}, {"save": "s3://***@host/b"}),
        (
            {"load": "https://h/x?X-Amz-Signature=abc&v=1"},
            {"load": "https://h/x?X-Amz-Signature=***&v=1"},
        ),
        ({"token_count": 3, "txt_key": "caption", "input_key": "mp4"},) * 2,
        ({"save": "s3://bucket/prefix", "text": "a@b"},) * 2,
    ],
)
def test_secrets_are_masked_and_nothing_else(value: object, shown: object) -> None:
    assert masked(value) == shown


def test_snapshot_holds_sections_and_final_arguments() -> None:
    config = load(*TINY, "--lr", "3e-4", "--run-id", "r1")

    record = yaml.safe_load(snapshot(config))

    assert record["run_id"] == "r1"
    assert record["args"]["lr"] == 3e-4
    assert record["deepspeed"]["optimizer"]["params"]["lr"] == 3e-4
    assert record["model"] == config.sections["model"]
    assert record["compat"]["mode"] == "default"


def test_snapshot_depends_on_what_is_asked_and_not_on_how(tmp_path: Path) -> None:
    by_flag = load(*TINY, "--log-interval", "7")
    by_yaml = load(*TINY, layer(tmp_path, {"args": {"log_interval": 7}}))
    other = load(*TINY, "--log-interval", "8")

    texts = [
        snapshot(config).split("base:")[0] + snapshot(config).split("batch_from_same_dataset")[1]
        for config in (by_flag, by_yaml, other)
    ]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_snapshot_leaves_out_what_belongs_to_one_process() -> None:
    assert snapshot(load(*TINY, "--local-rank", "3")) == snapshot(load(*TINY))


def test_registered_classes_are_recorded() -> None:
    words = ("--register", "a.B=my.module:B")

    record = yaml.safe_load(snapshot(load(*base("tiny/tiny", "tiny/tiny_train"), *words)))

    assert record["registered"] == {"a.B": "my.module:B"}


def test_digest_is_sha256_of_the_text() -> None:
    assert digest("abc") == hashlib.sha256(b"abc").hexdigest()
