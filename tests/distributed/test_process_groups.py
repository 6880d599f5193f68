"""Several processes: small agreements, and ranks that are wrong."""

from __future__ import annotations

import json
import time
from pathlib import Path

from tests.distributed.rank_processes import outputs, run_processes

PEER = "tests/distributed/peer.py"


def test_two_processes_exchange_sums_values_and_bytes() -> None:
    ended = run_processes([PEER, "exchange"], ranks=[0, 1], world_size=2)

    first, second = (json.loads(text) for text in outputs(ended))
    for report in (first, second):
        assert report["sum"] == 3.0
        assert report["of one"] == [1, 7]
        assert report["all"] == [["", 0], ["xxxxx", 1]]
        assert report["json"] == {"rank": 0, "list": [1, 2.5, None]}
    assert (first["sent"], second["sent"]) == ([], [0.5, -2.0])
    assert first["gathered"] == [[0, 255, 128, 3_000_000], [1, 255, 128, 3_000_000]]
    assert first["second"] == ["0", "1"]
    assert second["gathered"] == []


def test_rank_zero_stays_until_the_others_are_done_with_its_store() -> None:
    ended = run_processes([PEER, "leave"], ranks=[0, 1], world_size=2)

    assert [json.loads(text) for text in outputs(ended)] == [{"left": 0}, {"left": 1}]


def test_two_processes_with_rank_one_both_end_with_one_clear_error() -> None:
    start = time.monotonic()

    ended = run_processes([PEER, "claim", "60"], ranks=[1, 1], world_size=2)

    assert [process.code for process in ended] == [78, 78]
    assert all("two processes have RANK=1" in process.err for process in ended)
    assert all("give each process its own RANK" in process.err for process in ended)
    assert time.monotonic() - start < 45


def test_two_processes_with_rank_zero_both_end_with_one_clear_error() -> None:
    ended = run_processes([PEER, "claim", "60"], ranks=[0, 0], world_size=2)

    assert [process.code for process in ended] == [78, 78]
    assert all("two processes have RANK=0" in process.err for process in ended)


def test_a_clash_on_another_machine_is_found_in_the_store(tmp_path: Path) -> None:
    ended = run_processes(
        [PEER, "claim-elsewhere", "60"],
        ranks=[0, 1, 1],
        world_size=3,
        extra={"FOLDERS": str(tmp_path)},
    )

    assert [process.code for process in ended] == [78, 78, 78]
    assert all("two processes have RANK=1" in process.err for process in ended)


def test_rank_zero_hears_of_a_clash_of_others() -> None:
    ended = run_processes([PEER, "claim", "60"], ranks=[0, 1, 1], world_size=3)

    assert [process.code for process in ended] == [78, 78, 78]
    assert "reported to rank 0" in ended[0].err


def test_a_rank_that_never_comes_is_named_and_may_be_tried_again() -> None:
    ended = run_processes([PEER, "claim", "1"], ranks=[0], world_size=2)

    assert ended[0].code == 138
    assert "ranks [1] of 2 did not come" in ended[0].err


def test_a_missing_rank_zero_is_named_with_its_address() -> None:
    ended = run_processes([PEER, "claim", "1"], ranks=[1], world_size=2)

    assert ended[0].code == 138
    assert "rank 0 does not answer" in ended[0].err
    assert "MASTER_ADDR=127.0.0.1" in ended[0].err
