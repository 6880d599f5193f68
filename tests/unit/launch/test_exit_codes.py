"""How a child's end becomes the pod's exit code."""

from __future__ import annotations

import signal

import pytest

from app import errors
from app.launch.exit_codes import MEANINGS, exit_code_of, is_permanent


@pytest.mark.parametrize("code", [0, 1, 2, 65, 66, 77, 78, 130, 137, 138, 139, 143])
def test_a_code_of_the_contract_stays(code: int) -> None:
    assert exit_code_of(code) == code
    assert code in MEANINGS


@pytest.mark.parametrize(
    ("signal_number", "code"),
    [
        (signal.SIGINT, 130),
        (signal.SIGKILL, 137),
        (signal.SIGSEGV, 139),
        (signal.SIGTERM, 143),
        (signal.SIGBUS, 128 + signal.SIGBUS),
    ],
)
def test_a_signal_is_128_and_its_number(signal_number: int, code: int) -> None:
    assert exit_code_of(-signal_number) == code


def test_an_abort_of_a_collectives_watchdog_is_retryable() -> None:
    assert exit_code_of(-signal.SIGABRT) == 138
    assert exit_code_of(128 + signal.SIGABRT) == 138


@pytest.mark.parametrize("code", [3, 17, 64, 100, 127, 128])
def test_an_unknown_code_is_an_unknown_error(code: int) -> None:
    assert exit_code_of(code) == 1


def test_every_error_of_ours_has_a_row() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    ours = [kind for kind in kinds if issubclass(kind, errors.CogvxError)]

    assert len(ours) > 5
    assert {kind.exit_code for kind in ours} <= set(MEANINGS)


def test_the_operator_retries_from_128_on() -> None:
    assert [code for code in MEANINGS if is_permanent(code)] == [1, 2, 65, 66, 77, 78]
