from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable

import pytest

from app.errors import (
    AccessDeniedError,
    CogvxError,
    ConfigError,
    DataError,
    RetryableError,
)
from app.storage.failures import FailureKind, StorageFailure, kind_of_answer
from app.storage.objects import ObjectMissingError
from app.storage.retry import Clock, Retrier, Streams


class FakeTime:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.sleeps: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds

    def clock(self, uniform: Callable[[float, float], float] = lambda low, high: high) -> Clock:
        return Clock(monotonic=lambda: self.now, sleep=self.sleep, uniform=uniform)


class Script:
    """Fails with the given failures one after another, then returns "done"."""

    def __init__(self, *failures: StorageFailure) -> None:
        self.failures = list(failures)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.failures:
            raise self.failures.pop(0)
        return "done"


def failure(kind: FailureKind, detail: str = "x", *, progressed: bool = False) -> StorageFailure:
    return StorageFailure(kind, detail, progressed=progressed)


def retrier_on(time: FakeTime, deadline_s: float = 300.0) -> Retrier:
    return Retrier(deadline_s, time.clock(), refresh=lambda: None, throttled=lambda: None)


def run(retrier: Retrier, script: Script, *, fresh: bool = False) -> str:
    return retrier.run(script, what="reading", where="s3://bucket/key", fresh=fresh)


@pytest.mark.parametrize(
    "kind",
    [FailureKind.THROTTLED, FailureKind.SERVER, FailureKind.CONNECTION, FailureKind.SLOW],
)
def test_passing_failures_are_repeated(kind: FailureKind) -> None:
    time, script = FakeTime(), Script(*[failure(kind)] * 6)

    assert run(retrier_on(time), script) == "done"
    assert time.sleeps == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4]
    assert script.calls == 7


def test_the_back_off_is_capped() -> None:
    time = FakeTime()

    run(retrier_on(time), Script(*[failure(FailureKind.SERVER)] * 12))

    assert time.sleeps[6:] == [10.0] * 6


def test_the_back_off_has_full_jitter() -> None:
    bounds: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        bounds.append((low, high))
        return random.Random(0).uniform(low, high)

    time = FakeTime()
    retrier = Retrier(300, time.clock(uniform), refresh=lambda: None, throttled=lambda: None)

    run(retrier, Script(*[failure(FailureKind.SERVER)] * 3))

    assert bounds == [(0.0, 0.2), (0.0, 0.4), (0.0, 0.8)]


def test_progress_starts_the_back_off_again() -> None:
    time = FakeTime()
    cut = failure(FailureKind.CONNECTION, progressed=True)

    run(retrier_on(time), Script(*[failure(FailureKind.CONNECTION)] * 3, cut, cut))

    assert time.sleeps == [0.2, 0.4, 0.8, 1.6, 0.2]


def test_the_deadline_ends_it_with_an_error_that_asks_for_a_new_start() -> None:
    time, script = FakeTime(), Script(*[failure(FailureKind.CONNECTION, "refused")] * 999)

    with pytest.raises(RetryableError, match=r"(?s)gave up.*refused.*s3://bucket/key") as caught:
        run(retrier_on(time, deadline_s=60), script)

    assert caught.value.exit_code == 138
    assert 50 <= time.now - 1000 <= 60


@pytest.mark.parametrize(
    ("kind", "error", "exit_code"),
    [
        (FailureKind.MISSING, ObjectMissingError, 66),
        (FailureKind.DENIED, AccessDeniedError, 77),
        (FailureKind.CHANGED, DataError, 65),
        (FailureKind.REQUEST, ConfigError, 78),
        (FailureKind.TLS, ConfigError, 78),
    ],
)
def test_permanent_failures_are_not_repeated(
    kind: FailureKind, error: type[CogvxError], exit_code: int
) -> None:
    script = Script(failure(kind))

    with pytest.raises(error, match="s3://bucket/key") as caught:
        run(retrier_on(FakeTime()), script)

    assert script.calls == 1
    assert caught.value.exit_code == exit_code


def test_the_same_wrong_data_three_times_in_a_row_is_the_object() -> None:
    script = Script(*[failure(FailureKind.WRONG_DATA, "5 bytes of 9")] * 3)

    with pytest.raises(DataError, match="5 bytes of 9"):
        run(retrier_on(FakeTime()), script)

    assert script.calls == 3


def test_other_wrong_data_is_read_again() -> None:
    wrong = [failure(FailureKind.WRONG_DATA, f"{n} bytes of 9") for n in (5, 5, 6, 5, 5, 6)]

    assert run(retrier_on(FakeTime()), Script(*wrong)) == "done"


def test_expired_credentials_are_refreshed_once() -> None:
    refreshed: list[int] = []
    retrier = Retrier(
        300, FakeTime().clock(), refresh=lambda: refreshed.append(1), throttled=lambda: None
    )
    expired = failure(FailureKind.EXPIRED)

    assert run(retrier, Script(expired)) == "done"
    with pytest.raises(RetryableError):
        run(retrier, Script(expired, expired))

    assert len(refreshed) == 2


def test_a_wrong_clock_is_named_with_both_times() -> None:
    skewed = failure(FailureKind.CLOCK, "server 10:00, here 11:00")

    with pytest.raises(AccessDeniedError, match="server 10:00, here 11:00"):
        run(retrier_on(FakeTime()), Script(skewed, skewed))


def test_a_missing_object_of_our_own_is_asked_for_three_times_more() -> None:
    missing = failure(FailureKind.MISSING)

    assert run(retrier_on(FakeTime()), Script(*[missing] * 3), fresh=True) == "done"
    with pytest.raises(ObjectMissingError):
        run(retrier_on(FakeTime()), Script(*[missing] * 4), fresh=True)


def test_a_bug_is_not_repeated() -> None:
    def broken() -> None:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        retrier_on(FakeTime()).run(broken, what="reading", where="x")


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (503, "SlowDown", FailureKind.THROTTLED),
        (503, "", FailureKind.THROTTLED),
        (429, "", FailureKind.THROTTLED),
        (400, "RequestLimitExceeded", FailureKind.THROTTLED),
        (500, "InternalError", FailureKind.SERVER),
        (502, "", FailureKind.SERVER),
        (504, "", FailureKind.SERVER),
        (200, "InternalError", FailureKind.SERVER),
        (400, "RequestTimeout", FailureKind.CONNECTION),
        (403, "RequestTimeTooSkewed", FailureKind.CLOCK),
        (400, "ExpiredToken", FailureKind.EXPIRED),
        (400, "InvalidToken", FailureKind.EXPIRED),
        (404, "NoSuchKey", FailureKind.MISSING),
        (404, "404", FailureKind.MISSING),
        (403, "AccessDenied", FailureKind.DENIED),
        (403, "SignatureDoesNotMatch", FailureKind.DENIED),
        (401, "", FailureKind.DENIED),
        (400, "BadDigest", FailureKind.WRONG_DATA),
        (412, "PreconditionFailed", FailureKind.REQUEST),
        (416, "InvalidRange", FailureKind.REQUEST),
        (405, "MethodNotAllowed", FailureKind.REQUEST),
        (501, "NotImplemented", FailureKind.REQUEST),
    ],
)
def test_answers_have_their_class(status: int, code: str, kind: FailureKind) -> None:
    assert kind_of_answer(status, code) is kind


def test_streams_are_halved_while_throttled() -> None:
    time = FakeTime()
    streams = Streams(8, time.clock())

    streams.throttle()

    assert streams.allowed() == 4
    time.now += 31
    assert streams.allowed() == 8


def test_no_more_streams_run_than_allowed() -> None:
    streams, running, most = Streams(2, Clock()), 0, 0
    lock, gate = threading.Lock(), threading.Event()

    def use() -> None:
        nonlocal running, most
        with streams.one():
            with lock:
                running += 1
                most = max(most, running)
            gate.wait(0.05)
            with lock:
                running -= 1

    threads = [threading.Thread(target=use) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert most == 2


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
    return [record.getMessage() for record in lines]


def test_silence_is_explained_after_seconds_and_at_a_bounded_rate(
    caplog: pytest.LogCaptureFixture,
) -> None:
    time = FakeTime()
    retrier = retrier_on(time, deadline_s=300)
    for _ in range(3):  # several operations at once share the bound; here one after another
        with pytest.raises(RetryableError):
            run(retrier, Script(*[failure(FailureKind.CONNECTION, "refused")] * 999))

    lines = said(caplog)

    assert 27 <= len(lines) <= 30  # 900 s, one line in 30 s
    assert lines[0] == (
        "retrying for at most 297 s more: reading of s3://bucket/key (connection: refused)"
    )


def test_a_short_failure_is_not_worth_a_line(caplog: pytest.LogCaptureFixture) -> None:
    run(retrier_on(FakeTime()), Script(*[failure(FailureKind.SERVER)] * 4))

    assert said(caplog) == []


def test_a_failure_that_is_better_known_is_treated_as_what_it_is() -> None:
    time = FakeTime()
    retrier = Retrier(
        300,
        time.clock(),
        refresh=lambda: None,
        throttled=lambda: None,
        explain=lambda found: StorageFailure(FailureKind.SETUP, "https on http", code="VARIABLE"),
    )
    script = Script(failure(FailureKind.CONNECTION))

    with pytest.raises(ConfigError, match="https on http"):
        run(retrier, script)

    assert script.calls == 1
    assert time.sleeps == []
