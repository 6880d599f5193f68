"""Settings that must be there before torch is imported. Light: imports nothing itself."""

from __future__ import annotations

import os

# The recorded tensors were made with this branch of MKL's exp; the others differ in the last bit,
# which a timestep of 999 turns into 1e-5 in the network's output.
os.environ.setdefault("MKL_CBWR", "COMPATIBLE")
# One thread per process: the suite starts several processes and CI has two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matmuls on a GPU
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
