"""Errors that travel between ranks as texts."""

from __future__ import annotations

import json

import pytest

from app.distributed.agreement import error_fields, error_from_fields
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
