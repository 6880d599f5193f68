"""Runs started the way users of the original start them, and preempted ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.checkpoint.attempts import read_attempts
from app.checkpoint.catalog import complete_checkpoints
from tests.support.tiny_gang import Gang, ranks_by_hand
from tests.support.tiny_run import TinyWorld, numbers_of_steps, run_python


def test_torchrun_starts_the_ranks_of_a_run(world: TinyWorld, tmp_path: Path) -> None:
    words = world.words("torchrun", "args.train_iters=2")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

    ended = run_python([*torchrun, "-m", "app", *words], world.environment(tmp_path))

    assert ended.code == 0, ended.err[-3000:]
    (attempt,) = read_attempts(world.storage("torchrun"))
    assert attempt.world["world_size"] == 2
    assert sorted(numbers_of_steps(world.storage("torchrun"))) == [1, 2]


@pytest.mark.slow
def test_sigterm_to_one_rank_saves_on_all_and_the_next_start_goes_on(
    world: TinyWorld, tmp_path: Path
) -> None:
    storage = world.storage("preempted")
    words = world.words("preempted", "args.train_iters=40", "args.save_interval=null")
    processes = ranks_by_hand(words, world.environment(tmp_path / "tmp"))
    with Gang(processes, tmp_path / "logs") as gang:
        gang.wait_for_step(3)

        gang.terminate(gang.names[1])
        codes = gang.codes()

        assert codes == [143, 143], gang.text()[-3000:]
        ((saved, _),) = complete_checkpoints(storage)
        assert 3 <= saved.step < 40
        gang.start_again()
        assert gang.codes() == [0, 0], gang.text()[-3000:]
    assert [attempt.resumed_from for attempt in read_attempts(storage)] == [None, saved.name]
    assert sorted(numbers_of_steps(storage)) == list(range(1, 41))
