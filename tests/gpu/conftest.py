"""These tests run on a GPU where there is one, and otherwise on the CPU at a tiny size.

They need torch, numpy, safetensors, pytest and the recorded cases; no DeepSpeed, no Kubernetes.
`make test-gpu` runs them all; `COGVX_GOLDEN` names other recordings.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.gpu.place import DEVICE
from tests.parity import golden

SLACK = 10.0  # other kernels than the recording's: ten times the tolerances of the files


@pytest.fixture(autouse=True)
def exact_fp32_on_the_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No TF32, and the runners of the recorded cases compute on the device."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    monkeypatch.setattr(golden.RUNNING, "device", DEVICE)
    monkeypatch.setattr(golden.RUNNING, "slack", SLACK)
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
