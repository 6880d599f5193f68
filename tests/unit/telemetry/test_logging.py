"""Log lines: events with facts, without secrets."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import pytest

from app.telemetry.logging import LogContext, SecretsFilter, logging_for

log = logging.getLogger("tests.logging")


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_json_line_has_event_rank_step_and_facts() -> None:
    stream = io.StringIO()

    with logging_for(LogContext(rank=0, step=12), json_lines=True, stream=stream):
        log.info("checkpoint published", extra={"size_gib": 1.5, "url": "s3://bucket/run"})

    (line,) = lines(stream)
    assert line["event"] == "checkpoint published"
    assert (line["level"], line["rank"], line["step"]) == ("info", 0, 12)
    assert (line["size_gib"], line["url"]) == (1.5, "s3://bucket/run")


def test_the_step_of_the_context_may_move() -> None:
    stream, context = io.StringIO(), LogContext(rank=0)

    with logging_for(context, json_lines=True, stream=stream):
        log.info("before")
        context.step = 3
        log.info("after")

    first, second = lines(stream)
    assert "step" not in first
    assert second["step"] == 3


def test_a_number_that_json_cannot_say_is_written_as_text() -> None:
    stream = io.StringIO()

    with logging_for(LogContext(rank=0), json_lines=True, stream=stream):
        log.info("bad", extra={"loss": float("nan")})

    assert lines(stream)[0]["loss"] == "nan"


def test_a_text_line_is_short_and_has_the_same_facts() -> None:
    stream = io.StringIO()

    with logging_for(LogContext(rank=0, step=3), json_lines=False, stream=stream):
        log.info("training", extra={"loss": 0.123456789, "where": "a b"})

    line = stream.getvalue().strip()
    assert line.endswith('info rank 0 step 3: training  loss=0.12346 where="a b"')


def test_other_ranks_show_warnings_only_and_keep_everything_in_their_file(tmp_path: Path) -> None:
    stream, path = io.StringIO(), tmp_path / "rank.txt"

    with logging_for(LogContext(rank=1), json_lines=True, stream=stream, path=path):
        log.info("said by rank 0 as well")
        log.warning("worth knowing")

    assert [line["event"] for line in lines(stream)] == ["worth knowing"]
    kept = [json.loads(line)["event"] for line in path.read_text().splitlines()]
    assert kept == ["said by rank 0 as well", "worth knowing"]


def test_debug_shows_details_of_every_rank() -> None:
    stream = io.StringIO()

    with logging_for(LogContext(rank=1), level=logging.DEBUG, json_lines=True, stream=stream):
        log.debug("detail")

    assert [line["event"] for line in lines(stream)] == ["detail"]


def test_after_the_block_nothing_is_written_any_more() -> None:
    stream = io.StringIO()
    with logging_for(LogContext(rank=0), json_lines=True, stream=stream):
        pass

    log.warning("too late")

    assert stream.getvalue() == ""


def test_a_traceback_goes_along() -> None:
    stream = io.StringIO()

    with logging_for(LogContext(rank=0), json_lines=True, stream=stream):
        try:
            raise RuntimeError("broken")
        except RuntimeError:
            log.exception("failed")

    assert "RuntimeError: broken" in str(lines(stream)[0]["traceback"])


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("key wJalrXUtnFEMI/K7MDENG given", "wJalrXUtnFEMI/K7MDENG"),
        ("http://user:hunter22@host/path", "hunter22"),
        ("https://s3/x?X-Amz-Signature=abcdef0123&b=1", "abcdef0123"),
        ("id AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE"),
        ("Authorization: Bearer abcdefghijkl", "abcdefghijkl"),
    ],
)
def test_secrets_are_masked(text: str, secret: str) -> None:
    environment = {"AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG", "HOME": "/home/somebody"}

    masked = SecretsFilter(environment).masked(text)

    assert secret not in masked
    assert "***" in masked


def test_ordinary_values_are_not_masked() -> None:
    filter_ = SecretsFilter({"HOME": "/home/somebody", "MY_TOKEN": "abc"})

    assert filter_.masked("/home/somebody abc") == "/home/somebody abc"


def test_a_secret_in_a_fact_does_not_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    stream = io.StringIO()

    with logging_for(LogContext(rank=0), json_lines=True, stream=stream):
        log.info("login", extra={"key": "0123456789abcdef"})

    assert "0123456789abcdef" not in stream.getvalue()


def test_talkative_libraries_are_heard_from_warning_on() -> None:
    stream = io.StringIO()

    with logging_for(LogContext(rank=0), json_lines=True, stream=stream):
        logging.getLogger("aiobotocore.credentials").info("found credentials")
        logging.getLogger("aiobotocore.credentials").warning("no credentials")

    assert "found" not in stream.getvalue()
    assert "no credentials" in stream.getvalue()
