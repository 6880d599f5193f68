"""A training step and a sampling keep everything on the device of the weights."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.warm_python import warm_python

ROOT = Path(__file__).resolve().parents[3]
KINDS = ("2b", "5b", "5b_i2v", "1.5", "1.5_i2v")


def on_another_device(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        warm_python("-m", "tests.support.foreign_device", *words),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_no_part_of_a_step_or_a_sampling_stays_behind_or_makes_the_host_wait() -> None:
    done = on_another_device(*KINDS)

    assert done.returncode == 0, done.stderr[-2000:]
    expected = [
        line
        for kind in KINDS
        for line in (
            f"{kind} loss elsewhere gradients ['elsewhere']",
            f"{kind} videos ['elsewhere']",
        )
    ]
    assert done.stdout.splitlines() == expected


def test_a_tensor_left_on_the_cpu_is_found() -> None:
    done = on_another_device("--text-on-cpu", "5b")

    assert done.returncode != 0
    assert "two devices" in done.stderr
