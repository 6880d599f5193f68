"""Runs of the real program whose ranks share a network, against the same run in one process."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load, load_file
from torch import Tensor

from app.checkpoint.layout import samples_folder
from app.rehearsal.records import read_metrics
from tests.support.tiny_gang import Gang, ranks_by_hand
from tests.support.tiny_run import TinyWorld, cogvx, numbers_of_steps

STEPS = 4


def train(
    world: TinyWorld,
    run_id: str,
    folder: Path,
    *overrides: str,
    ranks: int = 1,
    model: str = "tiny",
) -> None:
    """One start of a run; the global batch is 4 at every layout."""
    words = world.words(run_id, f"args.train_iters={STEPS}", "args.save_interval=2", model=model)
    words += ["args.valid_data=[s3://clips/valid]", f"args.eval_interval={STEPS}"]
    words += ["args.only_log_video_latents=true", "args.eval_iters=1"]
    processes = ranks_by_hand(
        [*words, *overrides], world.environment(folder / "tmp"), ranks=range(ranks)
    )
    with Gang(processes, folder / f"{run_id}-{ranks}") as gang:
        assert set(gang.codes()) == {0}, gang.text()[-4000:]


def validated(world: TinyWorld, run_id: str) -> dict[str, float]:
    """The validation losses of the last step."""
    records = read_metrics(world.storage(run_id))
    last = [record for record in records if "valid_loss" in record and record["step"] == STEPS]
    return {name: value for name, value in last[-1].items() if name.startswith("valid_loss")}


def latents(world: TinyWorld, run_id: str) -> dict[str, Tensor]:
    """What was sampled after the last step, by name of the file."""
    storage = world.storage(run_id)
    found = [entry.key for entry in storage.list(samples_folder(STEPS))]
    return {
        key.rpartition("/")[2]: load(storage.read_range(key, 0, storage.stat(key).size_bytes))[
            "latents"
        ]
        for key in found
        if key.endswith(".safetensors")
    }


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny", "tiny_lora"])
def test_model_parallel_size_shares_a_network_and_changes_no_number(
    world: TinyWorld, tmp_path: Path, model: str
) -> None:
    shared = ("--model-parallel-size", "2")
    train(world, f"{model}-alone", tmp_path, model=model)
    train(world, f"{model}-shared", tmp_path, *shared, "--exit-interval", "2", ranks=2, model=model)
    train(world, f"{model}-shared", tmp_path, model=model)  # goes on in one process
    train(world, f"{model}-joined", tmp_path, "--exit-interval", "2", model=model)
    train(world, f"{model}-joined", tmp_path, *shared, ranks=2, model=model)

    expected = numbers_of_steps(world.storage(f"{model}-alone"))

    for other in ("shared", "joined"):
        found = numbers_of_steps(world.storage(f"{model}-{other}"))
        assert sorted(found) == sorted(expected) == [1, 2, 3, 4]
        for step, numbers in expected.items():
            assert found[step]["loss"] == pytest.approx(numbers["loss"], rel=1e-5)
            assert found[step]["grad_norm"] == pytest.approx(numbers["grad_norm"], rel=1e-4)
        numbers = validated(world, f"{model}-alone")
        assert len(numbers) > 1
        assert validated(world, f"{model}-{other}") == pytest.approx(numbers, rel=1e-5)
        sampled = latents(world, f"{model}-{other}")
        assert sampled.keys() == latents(world, f"{model}-alone").keys()
        assert len(sampled) == 2
        for name, one in latents(world, f"{model}-alone").items():
            assert (sampled[name] - one).abs().max() <= 1e-3 * one.abs().max()


@pytest.mark.slow
def test_two_copies_of_two_ranks_each_train_as_one_process(
    world: TinyWorld, tmp_path: Path
) -> None:
    train(world, "one", tmp_path)
    halves = ("--model-parallel-size", "2", "--gradient-accumulation-steps", "1")
    train(world, "four", tmp_path, *halves, ranks=4)

    expected, found = (numbers_of_steps(world.storage(run_id)) for run_id in ("one", "four"))

    assert sorted(found) == sorted(expected)
    for step, numbers in expected.items():
        assert found[step]["loss"] == pytest.approx(numbers["loss"], rel=1e-5)


@pytest.mark.slow
def test_a_run_with_a_shared_network_exports_whole_weights(
    world: TinyWorld, tmp_path: Path
) -> None:
    for run_id, ranks, extra in (
        ("plain", 1, ()),
        ("halves", 2, ("--model-parallel-size", "2")),
    ):
        train(world, run_id, tmp_path, *extra, ranks=ranks)
        words = ("export", f"s3://runs/{run_id}", "--out", str(tmp_path / run_id))
        ended = cogvx(words, world.environment(tmp_path / "tmp"))
        assert ended.code == 0, ended.err

    expected, found = (
        load_file(next((tmp_path / run_id).glob("*.safetensors"))) for run_id in ("plain", "halves")
    )
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape
        assert (found[name].float() - tensor.float()).abs().max() < 1e-4
