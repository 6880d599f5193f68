"""A batch: a dictionary with upstream's keys, because users' datasets and steps know them.

`mp4` (B, T, 3, H, W) uint8, or floats in [-1, 1] or latents from a user's dataset; `txt` B
captions; `num_frames` (B,) int64, frames that are not padding; `fps` (B,). Ours: `positions`
(place of each sample in the global order), `keys` (its name, for messages and reports). Clips from
the latent cache have MEAN and LOGVAR (B, t, C, h, w), TEXT (B, n, D) and for image-to-video
FIRST_FRAME (B, 1, 3, H, W) in the place of `mp4`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from app.errors import DataError

Item = Mapping[str, Any]  # one sample, the same keys without the batch axis
Batch = dict[str, Any]
MEAN, LOGVAR, TEXT, FIRST_FRAME = "latent_mean", "latent_logvar", "text_embedding", "first_frame"
Collate = Callable[[Sequence[Item]], Batch]


def collate(items: Sequence[Item]) -> Batch:
    """Stack samples into a batch: tensors and numbers stacked, everything else listed.

    Lists of one length are turned, as torch's own collate does: the captions of several views are
    `txt[view][sample]`.

    Raises:
        DataError: the samples have different keys or shapes; names both samples.
    """
    first = items[0]
    batch: Batch = {}
    for name in first:
        if name == "key":
            continue
        for item in items:
            if name not in item:
                raise _differ(items, f"{_name(item)} has no '{name}', {_name(first)} has")
        batch[name] = _stacked(name, items)
    return batch


def with_names(batch: Batch, items: Sequence[Item], positions: Sequence[int]) -> Batch:
    """The batch with `positions` and `keys`."""
    batch["positions"] = list(positions)
    batch["keys"] = [_name(item) for item in items]
    return batch


def _stacked(name: str, items: Sequence[Item]) -> Tensor | list[Any]:
    values = [item[name] for item in items]
    if isinstance(values[0], np.ndarray):
        values = [torch.from_numpy(value) for value in values]
    if isinstance(values[0], Tensor):
        shapes = {tuple(value.shape) for value in values}
        if len(shapes) > 1:
            raise _differ(items, f"'{name}' has the shapes {sorted(shapes)} in one batch")
        return torch.stack(values)
    if all(isinstance(value, int | float | np.number) for value in values):
        whole = all(float(value).is_integer() for value in values)
        return torch.tensor(
            [int(v) if whole else float(v) for v in values],
            dtype=torch.int64 if whole else torch.float32,
        )
    if all(isinstance(value, list | tuple) for value in values) and _fit(values):
        return [list(one) for one in zip(*values, strict=True)]
    return list(values)


def _fit(values: Sequence[Sequence[Any]]) -> bool:
    return len({len(value) for value in values}) == 1


def _name(item: Item) -> str:
    return str(item.get("key", "a sample without a key"))


def _differ(items: Sequence[Item], what: str) -> DataError:
    return DataError(
        what,
        where=f"samples {', '.join(_name(item) for item in items)}",
        fix="every sample of a dataset must have the same keys and shapes",
    )
