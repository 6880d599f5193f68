"""Count the GPUs of this container, without importing torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

_NODE = re.compile(r"nvidia\d+")


def count_gpus(environ: Mapping[str, str], device_folder: Path = Path("/dev")) -> int:
    """Number of GPUs a process started with `environ` can use.

    The device files show what exists; a privileged container sees all of the host's, so the lists
    of the container runtime and of CUDA can only remove some.
    """
    names = os.listdir(device_folder) if device_folder.is_dir() else []
    present = sum(1 for name in names if _NODE.fullmatch(name))
    allotted = environ.get("NVIDIA_VISIBLE_DEVICES", "all").strip()
    if allotted in ("none", "void"):
        return 0
    if allotted not in ("", "all"):
        present = min(present, len(allotted.split(",")))
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    return min(present, _cuda_list_length(visible))


def _cuda_list_length(visible: str) -> int:
    # CUDA reads the list up to its first invalid entry, so "0,-1,1" is one device.
    count = 0
    for entry in visible.split(","):
        if not entry.strip() or entry.strip() == "-1":
            break
        count += 1
    return count
