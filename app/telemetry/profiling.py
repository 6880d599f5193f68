"""`args.profiling`: profile the steps from a given one on.

On a GPU: cudaProfilerStart/Stop for Nsight Systems (`nsys profile -c cudaProfilerApi`). On a CPU:
a trace of a few steps by torch.profiler, to be opened in a browser (chrome://tracing).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger(__name__)

TRACED_STEPS = 3  # on a CPU; a trace grows by tens of MB per step


class StepProfiler:
    """Profiles from step `from_step` on; does nothing when that is negative."""

    def __init__(self, from_step: int, device: torch.device, folder: Path) -> None:
        self._from_step = from_step
        self._on_gpu = device.type == "cuda"
        self._folder = folder
        self._running = False
        self._trace: Any = None

    def before(self, step: int) -> None:
        """Call before step `step` (0 is the first)."""
        if 0 <= self._from_step == step:
            self._start()
        elif self._trace is not None and step == self._from_step + TRACED_STEPS:
            self.close()

    def close(self) -> None:
        """Stop, and write the trace."""
        if not self._running:
            return
        self._running = False
        if self._on_gpu:
            torch.cuda.profiler.stop()
            return
        self._trace.__exit__(None, None, None)
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"trace-from-step-{self._from_step}.json"
        self._trace.export_chrome_trace(str(path))
        self._trace = None
        log.info("trace written", extra={"path": str(path)})

    def _start(self) -> None:
        self._running = True
        if self._on_gpu:
            torch.cuda.profiler.start()
            return
        self._trace = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
        self._trace.__enter__()
