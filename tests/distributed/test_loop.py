"""The loop on two ranks: they end together, and record the same numbers."""

from __future__ import annotations

import json
import subprocess

from tests.distributed.rank_processes import ROOT, environment
from tests.support.ports import reserved_port
from tests.support.warm_python import warm_python


def test_a_signal_to_one_rank_ends_both_after_the_same_saved_step() -> None:
    port = reserved_port()
    ranks = [
        subprocess.Popen(
            warm_python("tests/distributed/looper.py"),
            cwd=ROOT,
            env=environment(rank, 2, port),
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        assert ranks[1].stdout is not None
        while ranks[1].stdout.readline().strip() != "step 3":
            assert ranks[1].poll() is None, "ended before its third step"
        ranks[1].terminate()
        reports = [json.loads(rank.communicate(timeout=60)[0].splitlines()[-1]) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()

    assert [rank.returncode for rank in ranks] == [143, 143]
    first, second = reports
    assert first == second
    (saved,) = first["saved"]
    assert 4 <= saved < 400
    # The mean of `step` and `step + 1`.
    assert first["losses"] == [step + 0.5 for step in range(saved)]
