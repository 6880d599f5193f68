"""The demo's precision follows the hardware."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.rehearsal import demo


@pytest.mark.parametrize(
    ("flags", "gpus", "precision"),
    [
        ("fma avx512f avx512_bf16", 0, "bf16"),
        ("fma amx_bf16", 0, "bf16"),
        ("fma avx2 avx512f", 0, "fp32"),
        ("fma avx2", 1, "bf16"),
    ],
)
def test_bf16_is_for_hardware_that_has_it(
    flags: str, gpus: int, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"model name : a CPU\nflags\t\t: {flags}\n")
    monkeypatch.setattr(demo, "count_gpus", lambda environ: gpus)

    assert demo.fast_precision({}, tmp_path / "cpuinfo") == precision
