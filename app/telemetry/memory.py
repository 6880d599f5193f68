"""How much memory this process uses."""

from __future__ import annotations

import resource
import sys

import torch

GIB = 1 << 30


def memory_facts(device: torch.device) -> dict[str, float]:
    """GiB: peak of the process on the host; on a GPU also what torch holds and held at most."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts KiB, macOS bytes.
    facts = {"host_peak_gib": peak * (1 if sys.platform == "darwin" else 1024) / GIB}
    if device.type == "cuda":
        facts["gpu_allocated_gib"] = torch.cuda.memory_allocated(device) / GIB
        facts["gpu_peak_gib"] = torch.cuda.max_memory_allocated(device) / GIB
    return facts
