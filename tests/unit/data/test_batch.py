from __future__ import annotations

import numpy as np
import pytest
import torch

from app.data.batch import collate, with_names
from app.errors import DataError


def item(**changes: object) -> dict[str, object]:
    return {"mp4": torch.zeros(1, 3, 2, 2), "txt": "a", "num_frames": 1, "fps": 8.0} | changes


def test_numbers_tensors_and_texts() -> None:
    batch = collate([item(), item(txt="b", num_frames=5)])

    assert batch["mp4"].shape == (2, 1, 3, 2, 2)
    assert batch["txt"] == ["a", "b"]
    assert batch["num_frames"].tolist() == [1, 5]
    assert batch["fps"].dtype == torch.int64  # 8.0 is a whole number
    assert collate([item(fps=7.5)])["fps"].dtype == torch.float32


def test_arrays_become_tensors() -> None:
    assert collate([item(mp4=np.ones((2, 2)))])["mp4"].shape == (1, 2, 2)


def test_other_shapes_in_one_batch_name_the_samples() -> None:
    with pytest.raises(DataError, match=r"\(1, 3, 2, 2\), \(1, 3, 4, 4\)") as caught:
        collate([item(key="x"), item(key="y", mp4=torch.zeros(1, 3, 4, 4))])

    assert "x, y" in caught.value.where


def test_other_keys_in_one_batch_name_the_samples() -> None:
    with pytest.raises(DataError, match="y has no 'extra', x has"):
        collate([item(key="x", extra=1), item(key="y")])


def test_names_are_added_beside_upstream_keys() -> None:
    items = [item(key="x"), item()]

    batch = with_names(collate(items), items, [7, 8])

    assert batch["positions"] == [7, 8]
    assert batch["keys"] == ["x", "a sample without a key"]


def test_captions_of_views_are_turned_as_torch_does() -> None:
    items = [item(txt=["front a", "side a"]), item(txt=["front b", "side b"])]

    batch = collate(items)

    assert batch["txt"] == [["front a", "front b"], ["side a", "side b"]]
    turned = torch.utils.data.default_collate([one["txt"] for one in items])
    assert batch["txt"] == [list(view) for view in turned]
