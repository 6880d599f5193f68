"""Errors that travel between ranks as texts."""

from __future__ import annotations

import json

import pytest

from app.distributed.agreement import error_fields, error_from_fields, on_every_rank
from app.distributed.rank_group import ALONE, RankGroup
from app.errors import CogvxError, ConfigError, ConfigErrors, DataError, RetryableError
from app.storage.objects import ObjectMissingError


@pytest.mark.parametrize("kind", [CogvxError, ConfigError, DataError, RetryableError])
def test_an_error_comes_back_whole(kind: type[CogvxError]) -> None:
    error = kind("what", where="where", fix="fix")

    back = error_from_fields(json.loads(json.dumps(error_fields(error))))

    assert type(back) is kind
    assert str(back) == str(error)


def test_a_class_of_another_module_becomes_the_public_one_with_its_code() -> None:
    back = error_from_fields(error_fields(ObjectMissingError("a", where="b", fix="c")))

    assert type(back).__name__ == "InputMissingError"
    assert back.exit_code == 66


def test_of_several_mistakes_the_first_travels() -> None:
    mistakes = [ConfigError(name, where="w", fix="f") for name in ("first", "second")]

    assert error_from_fields(error_fields(ConfigErrors(mistakes))).what == "first"


def test_a_rank_that_is_alone_gets_its_own_result_or_error() -> None:
    error = DataError("a", where="b", fix="c")

    def fail() -> None:
        raise error

    assert on_every_rank(ALONE, lambda: {"a": 1}) == [{"a": 1}]
    with pytest.raises(DataError) as caught:
        on_every_rank(ALONE, fail)
    assert caught.value is error


def test_the_error_of_the_lowest_rank_is_raised_by_those_that_failed_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own, first = DataError("own", where="b", fix="c"), ConfigError("first", where="b", fix="c")
    others = [{"result": 1}, {"error": error_fields(first)}]
    monkeypatch.setattr(RankGroup, "gathered_json", lambda self, value: [*others, value])

    def fail() -> None:
        raise own

    for work in (fail, lambda: 3):
        with pytest.raises(ConfigError, match="first"):
            on_every_rank(RankGroup(2, 3), work)
