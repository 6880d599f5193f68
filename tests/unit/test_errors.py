"""Errors cross processes and keep their texts and codes."""

from __future__ import annotations

import pickle

from app.errors import ConfigError, ConfigErrors, DataError, ShapeError


def test_an_error_survives_a_process_boundary() -> None:
    error = pickle.loads(pickle.dumps(ShapeError("what", where="where", fix="fix")))

    assert type(error) is ShapeError
    assert str(error) == "what\n  where: where\n  fix:   fix"
    assert error.exit_code == DataError.exit_code == 65


def test_several_mistakes_are_shown_in_order_and_survive_too() -> None:
    mistakes = [ConfigError(name, where="w", fix="f") for name in ("first", "second")]

    errors = pickle.loads(pickle.dumps(ConfigErrors(mistakes)))

    assert str(errors) == "first\n  where: w\n  fix:   f\nsecond\n  where: w\n  fix:   f"
    assert errors.what == "first"
    assert errors.exit_code == 78
