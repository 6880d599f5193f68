"""Recorded cases: finding them, reading them, comparing with their own tolerances.

A case is `<name>.json` (what was run, tolerances) beside `<name>.safetensors` (tensors). Cases are
found by the `item` inside the JSON, never by name or number, in the directory named by the
environment variable COGVX_GOLDEN (default: tests/golden). README.md there explains the content.

Each runner module in tests/parity says `ITEMS = ("01", ...)`, a tuple literal of the item prefixes
that it runs; test_discovery.py fails when a case has no runner.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

DEFAULT_FOLDER = Path(__file__).resolve().parents[1] / "golden"


@dataclass
class Running:
    """Where the runners compute, and how much larger than recorded an error may be there.

    tests/gpu runs the same runners on a GPU.
    """

    device: torch.device
    slack: float = 1.0


RUNNING = Running(torch.device("cpu"))


def placed(value: Any) -> Any:
    """A tensor or module where the runners compute; None stays None."""
    return None if value is None else value.to(RUNNING.device)


def folder() -> Path:
    """The directory of the recorded cases."""
    return Path(os.environ.get("COGVX_GOLDEN", DEFAULT_FOLDER))


def all_cases() -> list[Case]:
    """Every case of the directory, ordered by file name. Fails when there is none."""
    found = [Case(path) for path in sorted(folder().glob("*.json"))]
    assert found, f"no recorded case (*.json) in {folder()}"
    alone = {path.stem for path in folder().glob("*.safetensors")} - {c.path.stem for c in found}
    assert not alone, f"tensors without a case that reads them: {sorted(alone)}"
    return found


def cases(*item_prefixes: str) -> list[Case]:
    """Cases whose item starts with one of the prefixes. May be empty: a directory can hold less."""
    return [case for case in all_cases() if case.item.startswith(item_prefixes)]


def name_of(case: Case) -> str:
    """For `pytest.mark.parametrize(..., ids=name_of)`."""
    return case.path.stem


class Case:
    """One recorded case; leaving a `with case:` block fails if a tensor was not asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.json: dict[str, Any] = json.loads(path.read_text())
        self.item: str = self.json["item"]
        self._consumed: set[str] = set()
        tensors = path.with_suffix(".safetensors")
        self._tensors_path = tensors if tensors.exists() else None

    def __enter__(self) -> Case:
        self._consumed.clear()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.check_consumed()

    # reading

    def names(self, prefix: str = "") -> list[str]:
        """Names of the tensors that start with `prefix`, in alphabetical order."""
        if self._tensors_path is None:
            return []
        with safe_open(self._tensors_path, "pt") as reader:
            return sorted(name for name in reader.keys() if name.startswith(prefix))  # noqa: SIM118

    def has(self, name: str) -> bool:
        return name in self.names(name)

    def tensor(self, name: str) -> Tensor:
        """One tensor, counted as consumed."""
        assert self._tensors_path is not None, f"{self.path} has no tensors"
        with safe_open(self._tensors_path, "pt") as reader:
            value = reader.get_tensor(name)
        self._consumed.add(name)
        return value

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """All tensors below `prefix`, by the rest of their names; counted as consumed."""
        return {name.removeprefix(prefix): self.tensor(name) for name in self.names(prefix)}

    def check_consumed(self) -> None:
        """Fail if a tensor is listed and not there, or is there and no one has asked for it."""
        lost = set(self.json.get("tensors") or ()) - set(self.names())
        assert not lost, f"{len(lost)} tensors of {self.path.name} are not there: {min(lost)}"
        left = [name for name in self.names() if name not in self._consumed]
        assert not left, f"{len(left)} tensors of {self.path.name} were not compared: {left[:5]}"

    # weights

    def sibling(self) -> Case | None:
        """The case that `weights_from` names, if it lies in the same directory."""
        path = self.path.with_name(f"{self.json.get('weights_from', '')}.json")
        return Case(path) if path.exists() else None

    def weights(self, shapes: Mapping[str, Iterable[int]]) -> dict[str, Tensor]:
        """The weights for the given upstream keys and shapes.

        Each comes from `state_dict/` of this case, else of the case that it names, else from the
        formula with this case's salt and gain. (The computed sin-cos table never follows the
        formula: do not ask for it where it is not stored.)
        """
        sibling = self.sibling()
        own = set(self.names("state_dict/"))
        theirs = set(sibling.names("state_dict/")) if sibling else set()
        result = {}
        for key, shape in shapes.items():
            stored = f"state_dict/{key}"
            if stored in own:
                result[key] = self.tensor(stored)
            elif sibling is not None and stored in theirs:
                result[key] = sibling.tensor(stored)
            else:
                gain = float(self.json.get("gain", 1.0))
                result[key] = weight(self.json["weights_salt"], key, tuple(shape), gain)
        return result

    # comparing

    def tolerance(self, name: str) -> float:
        """The number under `tolerances`; 0.0 (exact) where nothing is listed."""
        return float(self.json.get("tolerances", {}).get(name, 0.0))

    def noise_only(self, name: str) -> bool:
        """Whether the recorded value of this tensor is rounding noise of an exact zero."""
        return any(fnmatch.fnmatch(name, pattern) for pattern in self.json.get("noise_only", ()))

    def assert_close(self, actual: Tensor, expected: Tensor, quantity: str, name: str = "") -> None:
        """Compare by `<quantity>_abs` and `<quantity>_rel` of the file; exact if it lists neither.

        The error may be up to rel * (largest expected magnitude) + abs.
        """
        label = f"{self.path.stem} {name or quantity}"
        assert actual.shape == expected.shape, f"{label}: {actual.shape} != {expected.shape}"
        actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
        assert torch.isfinite(actual).all(), f"{label}: not finite"
        allowed = self.tolerance(f"{quantity}_abs")
        allowed += self.tolerance(f"{quantity}_rel") * expected.abs().max().item()
        allowed *= RUNNING.slack
        error = (actual - expected).abs().max().item()
        assert error <= allowed, f"{label}: max abs error {error:.3e}, allowed {allowed:.3e}"


# the formula of README.md, "Weight / input formula"


def u01(key: str, count: int) -> np.ndarray:
    """(count,) float64 in [0, 1): splitmix64 from sha256(key)."""
    seed = np.uint64(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little"))
    with np.errstate(over="ignore"):
        z = seed + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(40)).astype(np.float64) / 2.0**24


def weight(salt: str, key: str, shape: tuple[int, ...], gain: float = 1.0) -> Tensor:
    """The fp32 weight of `key`. A Conv2d patch weight is asked for flattened, then reshaped."""
    u = 2 * u01(f"{salt}/{key}", math.prod(shape)) - 1
    if key.endswith("pos_embedding"):
        values = 0.3 * u
    elif len(shape) >= 2:
        values = gain * math.sqrt(3 / math.prod(shape[1:])) * u
    elif key.endswith(".weight"):
        values = 1 + 0.2 * u
    else:
        values = 0.1 * u
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


def text_embedding(text: str, length: int, width: int) -> Tensor:
    """(length, width) fp32: the stub text encoder's answer for one caption."""
    values = 1.5 * (2 * u01(f"text/{text}", length * width) - 1)
    return torch.from_numpy(values.astype(np.float32).reshape(length, width))
