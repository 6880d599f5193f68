"""Run a training step and a sampling with all weights on a device that is not the CPU.

There is none here: tensors without content (torch's FakeTensorMode) pretend to lie on one. An
operation between two devices, which a GPU would refuse, is refused here as well, and so is reading
a number back, which would make the host wait for a GPU. Run as a program:
`python -m tests.support.foreign_device [--text-on-cpu] KIND ...`; it prints two lines per kind.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from app.models.vae.autoencoder import VideoAutoencoder
from app.training.step import DiffusionModel
from tests.unit.training.models import batch_of, tiny_model

DEVICE = "elsewhere"


class Elsewhere(FakeTensorMode):
    """What happens on the CPU alone is computed; what touches the device has no content."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves = tree_leaves((args, kwargs or {}))
        if not any(_touches_device(leaf) for leaf in leaves):
            return func(*args, **(kwargs or {}))
        args, kwargs = tree_map_only(Tensor, self._fake, (args, kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _fake(self, tensor: Tensor) -> Tensor:
        return tensor if isinstance(tensor, FakeTensor) else self.from_tensor(tensor)


def _touches_device(leaf: object) -> bool:
    if isinstance(leaf, torch.device):
        return leaf.type == DEVICE
    return isinstance(leaf, FakeTensor)


def move(module: nn.Module) -> None:
    """Put parameters and buffers on the device (`Module.to` cannot, for fake tensors)."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                empty = torch.empty(value.shape, dtype=value.dtype, device=DEVICE)
                part._parameters[name] = nn.Parameter(empty, requires_grad=value.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                empty = torch.empty(buffer.shape, dtype=buffer.dtype, device=DEVICE)
                part._buffers[name] = empty


class Encoder(nn.Module):
    """A text encoder with one weight, whose tokens lie where the weight lies."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(length, width))

    def encode(self, captions: Sequence[str]) -> Tensor:
        return torch.stack([self.weight * len(text) for text in captions]).detach()


def model_of(kind: str) -> DiffusionModel:
    """A tiny engine whose parts all have weights."""
    model = tiny_model(kind)
    model.vae = VideoAutoencoder(model.config.first_stage.params)  # type: ignore[arg-type]
    text = model.conditioner.encoder
    model.conditioner.encoder = Encoder(*text.shape)  # type: ignore[attr-defined,assignment]
    return model


def step_and_sample(kind: str) -> None:
    model: Any = model_of(kind)
    batch = batch_of(frames=9)
    with Elsewhere(allow_non_fake_inputs=True):
        for module in (model.network, model.vae, model.conditioner.encoder):
            move(module)
        model.device = torch.device(DEVICE)
        loss, _ = model.shared_step(batch)
        loss.backward()
        trained = [p for p in model.network.parameters() if p.requires_grad]
        devices = {p.grad.device.type for p in trained if p.grad is not None}
        print(f"{kind} loss {loss.device.type} gradients {sorted(devices)}")
        shown = model.log_video(batch, N=1)
        print(f"{kind} videos {sorted({video.device.type for video in shown.values()})}")


def main() -> None:
    _setup_privateuseone_for_python_backend(DEVICE)
    if "--text-on-cpu" in sys.argv:  # a mistake, to see that it is found
        Encoder.encode = lambda self, captions: torch.zeros(  # type: ignore[method-assign]
            len(captions), *self.weight.shape
        )
    for kind in sys.argv[1:]:
        if not kind.startswith("--"):
            step_and_sample(kind)
    sys.stdout.flush()
    os._exit(0)  # torch's teardown of a backend made in Python aborts


if __name__ == "__main__":
    main()
