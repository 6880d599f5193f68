"""What a failing process leaves for PID 1, and which of several causes counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.errors import ConfigError, DataError, RetryableError
from app.launch.causes import Cause, cause_of, first_cause, read_causes, record_cause


def cause(code: int, written: float) -> Cause:
    return Cause(code, f"what {code}", "where", "fix", written)


def test_an_error_of_ours_keeps_its_code_and_its_three_lines() -> None:
    found = cause_of(DataError("shard is cut", where="a.tar", fix="pack it again"))

    assert (found.exit_code, found.what, found.where, found.fix) == (
        *(65, "shard is cut"),
        *("a.tar", "pack it again"),
    )


class DistBackendError(RuntimeError):
    """Has the name of torch's class; its module does not count."""


class OutOfMemoryError(RuntimeError):
    """Has the name of torch's class."""


@pytest.mark.parametrize(
    ("problem", "code"),
    [
        (DistBackendError("NCCL timeout"), 138),
        (RuntimeError("[../gloo/pair.cc:534] Connection closed by peer [10.0.0.2]:1"), 138),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), 138),
        (ConnectionResetError(104, "Connection reset by peer"), 138),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), 1),
        (RuntimeError("shape '[2]' is invalid"), 1),
        (KeyError("connection closed by peer"), 1),
        (AssertionError(), 1),
        (SystemExit(2), 2),
        (SystemExit("text"), 1),
        (SystemExit(None), 1),  # 0 would say that the run has finished
        (SystemExit(0), 1),
        (SystemExit(3), 1),  # has no row in docs/exit_codes.md
        (SystemExit(143), 143),
        (SystemExit(256), 1),  # the shell would see 0
        (SystemExit(-1), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_exception_is_classified_by_type_then_by_sentence(
    problem: BaseException, code: int
) -> None:
    assert cause_of(problem).exit_code == code


def test_each_rank_writes_its_own_file_and_all_are_read(tmp_path: Path) -> None:
    status = tmp_path / "status"
    for local_rank in ("0", "1"):
        environ = {"COGVX_STATUS_FILE": str(status), "LOCAL_RANK": local_rank}
        record_cause(ConfigError(f"rank {local_rank}", where="w", fix="m"), environ)

    assert [found.what for found in read_causes(status)] == ["rank 0", "rank 1"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["status.0", "status.1"]


def test_a_file_without_rank_is_read_too(tmp_path: Path) -> None:
    content = {"exit_code": 66, "what": "a", "where": "b", "fix": "c"}
    (tmp_path / "status").write_text(json.dumps(content))

    assert read_causes(tmp_path / "status") == [Cause(66, "a", "b", "c", 0.0)]


def test_half_a_file_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "status.0").write_text('{"exit_code": 66, "wh')

    assert read_causes(tmp_path / "status") == []


def test_nobody_asked_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    found = record_cause(RetryableError("a", where="b", fix="c"), {})

    assert found.exit_code == 138
    assert list(tmp_path.iterdir()) == []


def test_a_permanent_cause_counts_before_an_earlier_retryable_one() -> None:
    assert first_cause([cause(138, 1.0), cause(65, 2.0), cause(78, 3.0)]) == cause(65, 2.0)


def test_of_retryable_causes_the_earliest_counts() -> None:
    assert first_cause([cause(138, 1.0), cause(143, 2.0)]) == cause(138, 1.0)


def test_no_cause_is_none() -> None:
    assert first_cause([]) is None
