from __future__ import annotations

import json

import pytest

from app.checkpoint.train_state import TrainState
from app.errors import CheckpointError


def test_a_state_comes_back() -> None:
    state = TrainState(step=5, micro_step=10, cursor={"t": 5}, loss_scale=None, ema_step=4)

    assert TrainState.from_json(state.to_json(), "x") == state


@pytest.mark.parametrize(
    "change",
    [
        {"step": None},
        {"step": "5"},
        {"step": True},
        {"step": -1},
        {"cursor": []},
        {"format_version": 9},
        {"adam_step": 3},
    ],
)
def test_a_damaged_state_is_refused_with_its_name(change: dict[str, object]) -> None:
    value = {**json.loads(TrainState(step=5).to_json()), **change}

    with pytest.raises(CheckpointError, match=r"state\.json"):
        TrainState.from_json(json.dumps(value).encode(), "run/state.json")


def test_a_state_without_a_field_is_refused() -> None:
    value = json.loads(TrainState(step=5).to_json())
    del value["seed"]

    with pytest.raises(CheckpointError, match="'seed' is missing"):
        TrainState.from_json(json.dumps(value).encode(), "x")


def test_a_state_with_fields_of_another_version_is_read() -> None:
    written = json.loads(TrainState(step=5).to_json())

    read = TrainState.from_json(
        json.dumps({**written, "lr": {}, "skipped_batches": 0}).encode(), "x"
    )

    assert read == TrainState(step=5)
    assert {"lr", "skipped_batches"}.isdisjoint(written)  # nothing set or read them
