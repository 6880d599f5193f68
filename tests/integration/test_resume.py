"""A killed and resumed run has the numbers of one that was never killed, to the last bit.

Two ranks, ZeRO-2, accumulation, averaged weights, data and checkpoints in S3. Everything else that
resuming promises is tested where it is built; this is the promise to the user.
"""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.checkpoint.attempts import read_attempts
from app.checkpoint.catalog import checkpoint_refs, complete_checkpoints
from tests.support.fault_proxy import FaultProxy
from tests.support.tiny_gang import Gang, ranks_by_hand
from tests.support.tiny_run import (
    TinyWorld,
    digests_of_newest,
    numbers_of_steps,
)

KINDS = {"master", "ema", "exp_avg", "exp_avg_sq"}


@dataclass(frozen=True)
class Plan:
    """One comparison: a run that is left alone, and the same one with kills."""

    steps: int
    save_interval: int
    kills: int  # at a random moment
    overrides: tuple[str, ...] = ()

    def words(self, world: TinyWorld, run_id: str) -> list[str]:
        return world.words(
            run_id,
            f"args.train_iters={self.steps}",
            f"args.save_interval={self.save_interval}",
            *self.overrides,
        )


def run_undisturbed(world: TinyWorld, plan: Plan, run_id: str, folder: Path) -> None:
    words = plan.words(world, run_id)
    processes = ranks_by_hand(words, world.environment(folder / run_id / "tmp"))
    with Gang(processes, folder / run_id) as gang:
        assert gang.codes() == [0, 0], gang.text()[-4000:]


def run_with_kills(world: TinyWorld, plan: Plan, run_id: str, folder: Path) -> list[str]:
    """Kill at random moments, then in the middle of a checkpoint; what was done, in words."""
    seed = int(os.environ.get("COGVX_TEST_SEED") or time.time())
    chance = random.Random(seed)
    story = [f"COGVX_TEST_SEED={seed}"]
    words = plan.words(world, run_id)
    with FaultProxy(world.server.port) as proxy:
        scratch = folder / run_id / "tmp"
        through = {"AWS_ENDPOINT_URL": proxy.endpoint, "AWS_ENDPOINT_URL_S3": proxy.endpoint}
        environment = {**world.environment(scratch), **through}
        with Gang(ranks_by_hand(words, environment), folder / run_id) as gang:
            # The last steps are left to the kill inside a checkpoint.
            moments = range(1, plan.steps - plan.save_interval)
            for done in sorted(chance.sample(moments, plan.kills)):
                pause_s = chance.uniform(0, 0.4)
                gang.wait_for_step(done)
                time.sleep(pause_s)
                gang.kill()
                story.append(f"killed {pause_s:.3f} s after step {done}")
                print(story[-1])
                gang.start_again()
            kill_in_checkpoint(gang, proxy)
            story.append("killed before a manifest was written")
            gang.start_again()
            assert gang.codes() == [0, 0], (story, gang.text()[-4000:])
    return story


def kill_in_checkpoint(gang: Gang, proxy: FaultProxy) -> None:
    """Hold the manifest back, which comes last, and kill while it is on its way."""
    manifest = "^PUT .*/manifest.json"
    proxy.set_rules([{"kind": "latency", "delay_s": 60.0, "match": manifest}])
    gang.wait_until("a manifest", lambda: any(kind for _, kind in proxy.log()))
    gang.kill()
    proxy.set_rules([])


def assert_same_run(world: TinyWorld, plan: Plan, runs: tuple[str, str], story: list[str]) -> None:
    untouched, killed = (world.storage(run_id) for run_id in runs)
    expected = numbers_of_steps(untouched)
    assert sorted(expected) == list(range(1, plan.steps + 1))
    assert numbers_of_steps(killed) == expected, story
    tensors = digests_of_newest(untouched)
    assert {key.split()[0] for key in tensors} == KINDS
    assert digests_of_newest(killed) == tensors, story


def assert_killed_as_told(world: TinyWorld, plan: Plan, run_id: str) -> None:
    storage = world.storage(run_id)
    assert len(read_attempts(storage)) == plan.kills + 2
    complete = {ref for ref, _ in complete_checkpoints(storage)}
    halves = [ref for ref in checkpoint_refs(storage) if ref not in complete]
    # The attempt before the last one wrote every file of its checkpoint but the manifest.
    assert plan.kills + 1 in [ref.attempt for ref in halves]


def compare(world: TinyWorld, plan: Plan, name: str, folder: Path) -> None:
    runs = (f"{name}-untouched", f"{name}-killed")

    run_undisturbed(world, plan, runs[0], folder)
    story = run_with_kills(world, plan, runs[1], folder)

    assert_killed_as_told(world, plan, runs[1])
    assert_same_run(world, plan, runs, story)


def test_a_run_killed_twice_ends_bit_for_bit_as_one_never_killed(
    world: TinyWorld, tmp_path: Path
) -> None:
    compare(world, Plan(steps=7, save_interval=2, kills=1), "fp32", tmp_path)


BF16 = ("deepspeed.bf16.enabled=true",)


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [(), BF16], ids=["fp32", "bf16"])
def test_a_run_killed_four_times_ends_bit_for_bit_as_one_never_killed(
    world: TinyWorld, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    name = f"long-{'bf16' if overrides else 'fp32'}"

    compare(world, Plan(steps=20, save_interval=3, kills=3, overrides=overrides), name, tmp_path)
