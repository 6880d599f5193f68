"""Runs of the real program whose ranks encode their clips together (cp_size)."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.rehearsal.records import read_metrics
from tests.support.tiny_gang import Gang, ranks_by_hand
from tests.support.tiny_run import TinyWorld, numbers_of_steps

STEPS = 2
VAE = "model.first_stage_config.params"


def train(world: TinyWorld, run_id: str, folder: Path, *overrides: str, ranks: int) -> None:
    """One run; the global batch is 4 at every layout."""
    words = world.words(run_id, f"args.train_iters={STEPS}")
    words += ["args.valid_data=[s3://clips/valid]", f"args.eval_interval={STEPS}"]
    words += ["args.only_log_video_latents=true", "args.eval_iters=1"]
    processes = ranks_by_hand(
        [*words, *overrides], world.environment(folder / "tmp"), ranks=range(ranks)
    )
    with Gang(processes, folder / run_id) as gang:
        assert set(gang.codes()) == {0}, gang.text()[-4000:]


def validated(world: TinyWorld, run_id: str) -> float:
    records = read_metrics(world.storage(run_id))
    return [float(r["valid_loss"]) for r in records if "valid_loss" in r][-1]


@pytest.mark.slow
def test_ranks_that_share_clips_train_as_one_process(world: TinyWorld, tmp_path: Path) -> None:
    together = (f"{VAE}.cp_size=2", f"{VAE}.encode_frames=4", f"{VAE}.parking=disk")
    train(world, "alone", tmp_path, ranks=1)
    halves = (*together, "--gradient-accumulation-steps", "1")
    train(world, "together", tmp_path, *halves, ranks=2)
    train(world, "same-clip", tmp_path, *together, "--model-parallel-size", "2", ranks=2)

    expected = numbers_of_steps(world.storage("alone"))

    for other in ("together", "same-clip"):
        found = numbers_of_steps(world.storage(other))
        assert sorted(found) == sorted(expected) == [1, 2]
        for step, numbers in expected.items():
            assert found[step]["loss"] == pytest.approx(numbers["loss"], rel=1e-5)
            assert found[step]["grad_norm"] == pytest.approx(numbers["grad_norm"], rel=1e-4)
    # The validation batch depends on the number of copies; one copy each here.
    assert validated(world, "same-clip") == pytest.approx(validated(world, "alone"), rel=1e-5)
