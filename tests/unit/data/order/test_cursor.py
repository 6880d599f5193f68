from __future__ import annotations

import json
from dataclasses import replace

import pytest

from app.data.order.cursor import Cursor
from app.errors import CheckpointError, ConfigError, DataError

CURSOR = Cursor(
    t=1000,
    seed=7,
    lanes=16,
    window=256,
    batch=64,
    manifest_sha256="ab" * 32,
    shares=(750, 250),
    quarantined=(("a.tar", "k"),),
    skipped=(12, 90),
)


def test_a_cursor_survives_json() -> None:
    assert Cursor.from_json(json.loads(json.dumps(CURSOR.to_json()))) == CURSOR


def test_json_has_the_documented_names() -> None:
    written = Cursor(5, 7, 16, 256, 64, "cd").to_json()

    assert written["format_version"] == 1
    assert {"t", "seed", "lanes", "window", "batch", "manifest_sha256", "quarantined"} <= set(
        written
    )


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("seed", 8, "seed was 7 and is now 8"),
        ("batch", 128, "batch was 64 and is now 128"),
        ("lanes", 8, "lanes was 16"),
        ("window", 100, "window was 256"),
        ("shares", (), "shares was"),
        ("order", "sat", "order was epoch"),
    ],
)
def test_another_sequence_is_refused(field: str, value: object, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        CURSOR.check_continues(replace(CURSOR, t=0, **{field: value}))

    assert "64" in caught.value.fix if field == "batch" else caught.value.fix


def test_other_data_is_refused_as_a_data_error() -> None:
    with pytest.raises(DataError, match="fingerprint was abab"):
        CURSOR.check_continues(replace(CURSOR, manifest_sha256="ef" * 32))


def test_the_same_sequence_goes_on_at_any_step() -> None:
    CURSOR.check_continues(replace(CURSOR, t=0, skipped=(), quarantined=()))

    assert CURSOR.t == 1000


@pytest.mark.parametrize(
    "damage",
    [{"format_version": 2}, {"t": "1000"}, {"t": True}, {"manifest_sha256": None}, {"shares": 3}],
)
def test_a_damaged_cursor_is_a_checkpoint_error(damage: dict[str, object]) -> None:
    with pytest.raises(CheckpointError):
        Cursor.from_json({**CURSOR.to_json(), **damage})
