"""A dataset of a user's own as a source (`--register`)."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import Any

import torch

from app.data.bad_clip import BadClipError
from app.data.batch import Item
from app.data.sources.protocols import Source, identity_of
from app.data.sources.settings import prefixed
from app.errors import CogvxError, ConfigError, DataError

ROUNDING = 0.01  # of pixels scaled in bf16


class MapSource(Source):
    """A user's map-style dataset (`--register`): anything with `len` and indexing by number.

    Its items are upstream's: a dictionary with `mp4` (T, 3, H, W), `txt`, `num_frames`, `fps`.
    It is indexed from several threads unless `num_workers` is 0 or 1.

    Args:
        dataset: the user's.
        name: for messages.
        caption_prefix: put before every caption.
    """

    def __init__(self, dataset: Any, name: str, caption_prefix: str = "") -> None:
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise ConfigError(
                "the dataset cannot be indexed: samples are taken by number",
                where=name,
                fix="offer __len__ and __getitem__ (iterable datasets cannot resume)",
            )
        self._dataset = dataset
        self._name = name
        self._prefix = caption_prefix.strip()

    def __len__(self) -> int:
        return len(self._dataset)

    def shard_sizes(self) -> Sequence[int]:
        return [len(self._dataset)]

    def fingerprint(self) -> str:
        """The dataset's own `fingerprint()` where it has one; else its name and length."""
        own = getattr(self._dataset, "fingerprint", None)
        return str(own()) if callable(own) else f"{self._name}:{len(self._dataset)}"

    def read(self, index: int, position: int) -> Item:
        try:
            item = self._dataset[index]
        except (CogvxError, OSError, MemoryError):
            raise
        except Exception as problem:
            # A dataset of a user may fail in any way; which line did belongs to the report.
            place = traceback.extract_tb(problem.__traceback__)[-1]
            raise BadClipError(
                "dataset_error",
                f"{type(problem).__name__}: {problem} ({place.filename}:{place.lineno})",
                where=f"item {index} of {self._name}",
            ) from problem
        if not isinstance(item, dict) or "mp4" not in item or "txt" not in item:
            raise DataError(
                "an item must be a dictionary with 'mp4' and 'txt'",
                where=f"item {index} of {self._name}",
                fix="see docs/data_format.md, 'A dataset of your own'",
            )
        _check_values(item["mp4"], f"item {index} of {self._name}")
        item = {"key": f"{self._name}[{index}]", **item}
        return {**item, "txt": self._captioned(item["txt"])} if self._prefix else item

    def identity(self, index: int) -> str:
        prefix = (self._prefix,) if self._prefix else ()
        return identity_of(self.fingerprint(), index, *prefix)

    def _captioned(self, caption: Any) -> Any:
        """One caption, or one per view."""
        if isinstance(caption, list | tuple):
            return [prefixed(self._prefix, str(one)) for one in caption]
        return prefixed(self._prefix, str(caption))

    def close(self) -> None:
        close = getattr(self._dataset, "close", None)
        if callable(close):
            close()


def _check_values(clip: Any, where: str) -> None:
    """Refuse pixels that would train without an error, and wrongly."""
    clip = torch.as_tensor(clip)
    fix = "give (T, 3, H, W), uint8 or floats in [-1, 1]: docs/data_format.md"
    if clip.ndim < 4:
        return  # the step refuses it
    if clip.shape[-3] != 3 and clip.shape[-1] == 3:
        raise DataError(f"'mp4' is {tuple(clip.shape)}: channels come last", where=where, fix=fix)
    if clip.shape[-3] != 3 or clip.dtype == torch.uint8:
        return  # latents, or any pixels
    if not clip.is_floating_point():
        raise DataError(f"'mp4' holds {clip.dtype}", where=where, fix=fix)
    least, most = (float(value) for value in torch.aminmax(clip))
    if not -ROUNDING <= least + 1 <= most + 1 <= 2 + ROUNDING:  # neither is NaN
        raise DataError(f"'mp4' holds floats of {least:g} to {most:g}", where=where, fix=fix)
