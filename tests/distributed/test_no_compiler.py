"""A run on a CPU starts on a machine without a C++ compiler, and leaves no compiled code."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from tests.distributed.rank_processes import outputs, run_processes


def test_two_processes_train_without_a_compiler_and_with_empty_caches(tmp_path: Path) -> None:
    tools, caches = tmp_path / "bin", tmp_path / "caches"
    tools.mkdir()
    caches.mkdir()
    job = {"stage": 2, "precision": "bf16", "start": 0, "stop": 1}
    (tmp_path / "jobs.json").write_text(json.dumps([job]))
    hidden = {"PATH": str(tools), "CC": "", "CXX": "", "CUDA_HOME": str(tmp_path / "no-cuda")}
    kept = {
        "TORCH_EXTENSIONS_DIR": str(caches / "extensions"),
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "TRITON_CACHE_DIR": str(caches / "triton"),
    }

    ended = run_processes(
        ["tests/distributed/trainer.py", str(tmp_path / "jobs.json")],
        ranks=[0, 1],
        world_size=2,
        extra=hidden | kept,
        python=lambda *words: [sys.executable, *words],
    )

    assert all(shutil.which(name, path=str(tools)) is None for name in ("gcc", "g++", "c++", "cc"))
    reports = [json.loads(text)[0] for text in outputs(ended)]
    assert reports[0]["skipped"] == [False]
    assert [path for path in caches.rglob("*") if path.is_file()] == []
