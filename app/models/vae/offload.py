"""Where the pieces of a feature map wait while others are worked on.

The feature maps of a long clip are the large thing in an encode: 128 channels at full resolution.
What waits on the device costs no time; on the host (pinned memory) one copy each way; on disk
nothing but files grows with the length of the clip.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from app.storage.node_disk import node_folder


class Offloaded(Protocol):
    """One piece that waits. Its memory is free again once nothing refers to it."""

    def get(self) -> Tensor:
        """The piece on its device again; it can be read once more."""
        ...

    def drop(self) -> None:
        """Delete its file, if it has one; it cannot be read any more."""
        ...


Offload = Callable[[Tensor], Offloaded]


class OnDevice:
    """A tensor that stays where it is."""

    def __init__(self, x: Tensor) -> None:
        self._x = x

    def get(self) -> Tensor:
        return self._x

    def drop(self) -> None:
        pass


class OnHost:
    """A tensor of an accelerator in pinned memory of the host."""

    def __init__(self, x: Tensor) -> None:
        self._device = x.device
        pinned = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
        # Both copies run on the current stream, one after the other, so none needs waiting for.
        self._x = pinned.copy_(x, non_blocking=True)

    def get(self) -> Tensor:
        return self._x.to(self._device, non_blocking=True)

    def drop(self) -> None:
        pass


class InFile:
    """A tensor in a file."""

    def __init__(self, x: Tensor, path: Path) -> None:
        self._path = path
        self._shape, self._dtype, self._device = x.shape, x.dtype, x.device
        x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tofile(path)

    def get(self) -> Tensor:
        data = torch.from_numpy(np.fromfile(self._path, dtype=np.uint8))
        return data.view(self._dtype).reshape(self._shape).to(self._device)

    def drop(self) -> None:
        self._path.unlink(missing_ok=True)


@contextmanager
def offloading(place: str) -> Iterator[Offload]:
    """How to offload to `place`: device, host or disk (the node's scratch); emptied at the end."""
    if place != "disk":
        yield _on_host if place == "host" else OnDevice
        return
    folder = node_folder("vae")
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder) as name:
        numbers = itertools.count()
        yield lambda x: InFile(x, Path(name) / str(next(numbers)))


def _on_host(x: Tensor) -> Offloaded:
    return OnDevice(x) if x.device.type == "cpu" else OnHost(x)
