"""States of the global random generators, as JSON.

The program's own draws do not need it: they are pure functions of (seed, purpose, position). It
is for third-party modules that draw from the global generators.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from app.checkpoint.json_file import broken

_NUMPY_GENERATOR = "MT19937"


def capture_rng() -> dict[str, Any]:
    """States of torch (CPU and this process's GPU), numpy and python."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "format_version": 1,
        "torch": _encode(torch.get_rng_state()),
        "python": {"version": version, "words": list(words), "gauss": gauss},
        "numpy": {
            "generator": str(name),
            "keys": base64.b64encode(np.asarray(keys, dtype="<u4").tobytes()).decode(),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
    }
    if torch.cuda.is_available():
        state["cuda"] = _encode(torch.cuda.get_rng_state())
    return state


def restore_rng(state: Mapping[str, Any], where: str) -> None:
    """Restore captured states; that of the GPU only when there is one.

    Raises:
        CheckpointError: they are damaged.
    """
    try:
        python, numpy = state["python"], state["numpy"]
        if numpy["generator"] != _NUMPY_GENERATOR:
            raise ValueError(numpy["generator"])
        keys = np.frombuffer(base64.b64decode(numpy["keys"]), dtype="<u4").astype(np.uint32)
        torch.set_rng_state(_decode(state["torch"]))
        random.setstate((python["version"], tuple(python["words"]), python["gauss"]))
        np.random.set_state(
            (
                _NUMPY_GENERATOR,
                keys,
                int(numpy["position"]),
                int(numpy["has_gauss"]),
                float(numpy["cached"]),
            )
        )
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(_decode(state["cuda"]))
    except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise broken(f"its states cannot be restored ({type(error).__name__})", where) from error


def _encode(state: torch.Tensor) -> str:
    return base64.b64encode(state.cpu().numpy().tobytes()).decode()


def _decode(text: str) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), dtype=np.uint8).copy())
