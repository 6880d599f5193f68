"""`cogvx encode`: flags to a request, the report to a line or JSON."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import pytest

import app.run.encode.job
from app.cli import encode as command
from app.cli.main import main
from app.data.latent_cache import EncodePart
from app.errors import ConfigError, UsageError
from app.run.encode.job import EncodeReport, EncodeRequest
from tests.support.configs import TINY, load

BAD = {"key": "c/videos/x.mp4", "reason": "truncated", "detail": "cut at 7"}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[EncodeRequest]:
    calls: list[EncodeRequest] = []

    def encode(
        config: Any, request: EncodeRequest, watch: Callable[..., None], args: Namespace
    ) -> EncodeReport:
        calls.append(request)
        watch(1, 12, 1)
        return EncodeReport("s3://b/latents/ab", 12, 3, 8, [BAD], 1.5)

    monkeypatch.setattr(app.run.encode.job, "encode", encode)
    monkeypatch.delenv(command.INDEX_VARIABLE, raising=False)
    return calls


def test_the_report_is_a_line_and_bad_clips_are_listed(
    asked: list[EncodeRequest], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["encode", *TINY, "--out", "s3://b/latents/", "--workers", "4"]) == 0

    told = capsys.readouterr()
    assert told.out.splitlines() == [
        "12 clips: 3 computed, 8 existed, 1 cannot be used, 1.5 s",
        "latent cache: s3://b/latents/ab",
    ]
    assert "c/videos/x.mp4: truncated: cut at 7" in told.err
    assert asked == [EncodeRequest(out="s3://b/latents", part=EncodePart(0, 1), workers=4)]


def test_json_holds_everything(
    asked: list[EncodeRequest], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["encode", *TINY, "--out", "x", "--part", "1", "--parts", "3", "--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    assert (found["part"], found["parts"]) == (1, 3)
    assert (found["samples"], found["computed"], found["found"]) == (12, 3, 8)
    assert found["bad"] == [BAD]
    assert found["url"] == "s3://b/latents/ab"


def test_the_pod_of_an_indexed_job_knows_its_part(
    asked: list[EncodeRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "5")

    assert main(["encode", *TINY, "--out", "x", "--parts", "8"]) == 0
    assert main(["encode", *TINY, "--out", "x", "--part", "2", "--parts", "8"]) == 0
    assert main(["encode", *TINY, "--out", "x"]) == 0  # no parts: everything

    assert [request.part for request in asked] == [
        EncodePart(5, 8),
        EncodePart(2, 8),
        EncodePart(0, 1),
    ]


def test_the_cache_of_the_configuration_is_the_default(asked: list[EncodeRequest]) -> None:
    assert main(["encode", *TINY, "--latent-cache", "s3://b/mine"]) == 0

    assert asked[0].out == "s3://b/mine"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "--out is missing"),
        (["--out", "x", "--part", "1"], "--part is given without --parts"),
        (["--out", "x", "--parts", "3"], "--parts 3 does not say which part this is"),
        (["--out", "x", "--part", "3", "--parts", "3"], "there is no part 3 of 3"),
        (["--out", "x", "--part", "-1", "--parts", "3"], "there is no part -1 of 3"),
        (["--out", "x", "--parts", "0"], "there is no part 0 of 0"),
        (["--out", "x", "--workers", "0"], "--workers is 0"),
        (["--out", "x", "--wokers", "2"], "unknown flag '--wokers'"),
    ],
)
def test_parts_that_cannot_be_are_a_wrong_use(
    words: list[str], says: str, asked: list[EncodeRequest], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["encode", *TINY, *words]) == UsageError.exit_code

    assert says in capsys.readouterr().err
    assert asked == []


def test_the_index_of_the_pod_must_be_a_number_within_the_parts() -> None:
    own = {"out": "x", "part": None, "parts": 4, "workers": None}

    with pytest.raises(UsageError, match="there is no part 4 of 4"):
        command.encode_options(own, load(*TINY), {"JOB_COMPLETION_INDEX": "4"})
    with pytest.raises(ConfigError, match="JOB_COMPLETION_INDEX"):
        command.encode_options(own, load(*TINY), {"JOB_COMPLETION_INDEX": "first"})


def test_load_and_save_need_not_be_there_but_data_must(
    asked: list[EncodeRequest], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["encode", *TINY, "--out", "x", "args.save=null"]) == 0
    nothing = ["args.train_data=null", "args.valid_data=null"]
    assert main(["encode", *TINY, "--out", "x", *nothing]) == 78
    assert "'train_data' is missing" in capsys.readouterr().err


def test_a_cache_in_a_storage_that_is_not_supported_is_found_before_the_start(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [*TINY, "--latent-cache", "gs://bucket/latents", "--save", "runs", "--run-id", "a"]

    assert main(["train", *words]) == 78

    assert "'gs://bucket/latents' cannot be used" in capsys.readouterr().err


def test_help_shows_examples_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", "--help"]) == 0

    shown = capsys.readouterr().out
    assert "cogvx encode --base" in shown
    assert "--latent-cache s3://bucket/latents" in shown
    assert "JOB_COMPLETION_INDEX" in shown
    assert "exit codes" in shown
