"""Settings that must be there before torch is imported, and a place for temporary files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest

# The recorded tensors were made with this branch of MKL's exp; the others differ in the last bit,
# which a timestep of 999 turns into 1e-5 in the network's output.
os.environ.setdefault("MKL_CBWR", "COMPATIBLE")
# One thread per process: the suite starts several processes and CI has two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matmuls on a GPU
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# One server of warm Pythons (tests/support/warm_python.py) for all workers, started by the first
# who needs it; it ends with this process, the workers' parent.
os.environ.setdefault("WARM_PYTHON_OWNER", str(os.getpid()))
os.environ.setdefault("WARM_PYTHON", f"{tempfile.gettempdir()}/warm-python-{os.getpid()}")


@pytest.fixture(scope="session", autouse=True)
def own_temporary_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A TMPDIR for this process and its children.

    What a node shares lies there (`storage.node_disk`, the locks of ranks). Two workers are two
    nodes, and what an earlier session left is not found.
    """
    folder = str(tmp_path_factory.mktemp("tmp"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield
