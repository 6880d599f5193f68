"""Validation: every sample once at any world size, the same numbers each time, videos in order."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import decord
import pytest
import torch

from app.checkpoint.tensor_file import open_tensors
from app.config.schema.training import EvaluationConfig
from app.data.batch import collate
from app.distributed.rank_group import RankGroup
from app.run.attempt.validation import Evaluator
from app.storage.local import LocalStorage
from app.training.loop import LoopState
from app.training.step import DiffusionModel
from tests.unit.run.folders import read_json
from tests.unit.training.models import COLUMNS, ROWS, batch_of, tiny_model

SAMPLES = 5
FRAMES = 9


@dataclass
class Clips:
    """The validation set; which samples were read."""

    reads: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return SAMPLES

    def read(self, index: int, position: int) -> dict[str, Any]:
        self.reads.append(index)
        batch = batch_of(1, FRAMES, first=index)
        return {"mp4": batch["mp4"][0], "txt": batch["txt"][0], "key": str(index)}


@dataclass
class Modes:
    """The engine: only its mode is asked for."""

    told: list[str] = field(default_factory=list)

    def train(self) -> None:
        self.told.append("train")

    def eval(self) -> None:
        self.told.append("eval")


def evaluator(
    folder: Path,
    *,
    rank: int = 0,
    world_size: int = 1,
    model: DiffusionModel | None = None,
    **how: Any,
) -> Evaluator:
    source: Any = Clips()
    engine: Any = Modes()
    return Evaluator(
        config=EvaluationConfig(**{"interval": 1, "batch_size": 2, **how}),
        model=model or tiny_model(),
        engine=engine,
        source=source,
        collate=collate,
        storage=LocalStorage(folder),
        copies=RankGroup(rank, world_size),
        fps=8.0,
    )


def counted(made: Evaluator) -> Iterator[int]:
    """Positions that this rank adds to the sum."""
    for batch in made.batches():
        assert batch.counted is not None
        yield from (p for p, counts in zip(batch.positions, batch.counted, strict=True) if counts)


# which samples


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"iterations": 1, "batch_size": 1}, [0]),
        ({"iterations": 2, "batch_size": 2}, [0, 1, 2, 3]),
        ({"iterations": 100, "batch_size": 2}, [0, 1, 2, 3, 4]),
        ({"iterations": 1, "batch_size": 1, "strict": True}, [0, 1, 2, 3, 4]),
        ({"iterations": 0, "batch_size": 2}, [0]),  # a number all the same
    ],
)
def test_iterations_and_batch_size_count_samples_and_strict_takes_all(
    how: dict[str, Any], expected: list[int], tmp_path: Path
) -> None:
    assert list(counted(evaluator(tmp_path, **how))) == expected


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_ranks_share_the_samples_and_make_the_same_number_of_calls(
    world_size: int, batch_size: int, tmp_path: Path
) -> None:
    made = [
        evaluator(tmp_path, rank=rank, world_size=world_size, batch_size=batch_size, strict=True)
        for rank in range(world_size)
    ]

    shares = [list(counted(one)) for one in made]
    calls = [len(list(one.batches())) for one in made]

    assert sorted(position for share in shares for position in share) == list(range(SAMPLES))
    assert len(set(calls)) == 1


# the loss


@pytest.mark.usefixtures("groups")
def test_the_loss_does_not_depend_on_the_batch_size_or_on_when_it_is_asked_for(
    tmp_path: Path,
) -> None:
    model = tiny_model()
    one = evaluator(tmp_path, model=model, batch_size=1, strict=True)
    two = evaluator(tmp_path, model=model, batch_size=2, strict=True)

    first, second = one.loss(), one.loss()
    torch.manual_seed(99)
    other = two.loss()

    assert second == first
    assert other == pytest.approx(first, rel=1e-5)
    parts = [first[f"valid_loss_{i}"] for i in range(4)]
    assert first["valid_loss"] == pytest.approx(sum(parts) / 4)
    assert all(math.isfinite(part) and part > 0 for part in parts)


@pytest.mark.usefixtures("groups")
def test_the_loss_sees_the_weights(tmp_path: Path) -> None:
    model = tiny_model()
    made = evaluator(tmp_path, model=model, iterations=1)

    before = made.loss()["valid_loss"]
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.mul_(1.5)

    assert made.loss()["valid_loss"] != before


@pytest.mark.usefixtures("groups")
def test_captions_are_never_dropped(tmp_path: Path) -> None:
    made = evaluator(tmp_path)

    encoded, captions, _ = made.encoded([0, 1, 2, 3])

    assert captions == ["x", "xx", "xxx", "xxxx"]
    lengths = encoded.conditioning.text[:, 0, 0] / 0.1
    assert lengths.tolist() == pytest.approx([1, 2, 3, 4])  # in training half of them would be 0


@pytest.mark.usefixtures("groups")
def test_the_network_is_evaluated_and_trains_on_afterwards(tmp_path: Path) -> None:
    made = evaluator(tmp_path, iterations=1, log_videos=False)
    engine: Any = made.engine

    made(LoopState(step=3))
    made.baseline()

    assert engine.told == ["eval", "train", "eval", "train"]
    assert list(tmp_path.iterdir()) == []


# videos


@pytest.mark.usefixtures("groups")
def test_videos_captions_a_grid_and_an_overview_are_written(tmp_path: Path) -> None:
    made = evaluator(tmp_path, iterations=1, grid_rows=2)

    made(LoopState(step=7))

    folder = tmp_path / "samples/step-0000000007"
    assert sorted(path.name for path in folder.iterdir()) == [
        "grid-r0000.mp4",
        "p000-model.mp4",
        "p000-model.txt",
        "p001-model.mp4",
        "p001-model.txt",
        "samples.json",
    ]
    assert (folder / "p001-model.txt").read_text() == "xx"
    video = decord.VideoReader(str(folder / "p000-model.mp4"))
    assert (len(video), video[0].shape) == (FRAMES, (ROWS, COLUMNS, 3))
    grid = decord.VideoReader(str(folder / "grid-r0000.mp4"))
    assert grid[0].shape == (2 * ROWS, COLUMNS, 3)
    overview = read_json(folder, "samples.json")
    assert (overview["step"], overview["samples"], overview["fps"]) == (7, 2, 8.0)


@pytest.mark.usefixtures("groups")
def test_one_video_makes_no_grid(tmp_path: Path) -> None:
    evaluator(tmp_path, batch_size=1).sample(1)

    assert [path.name for path in tmp_path.rglob("*.mp4")] == ["p000-model.mp4"]


@pytest.mark.usefixtures("groups")
def test_latents_alone_are_those_of_the_vae_and_the_same_at_any_world_size(
    tmp_path: Path,
) -> None:
    model = tiny_model()
    for rank in (0, 1):
        how: dict[str, Any] = {"only_latents": True, "batch_size": 1}
        evaluator(tmp_path / "two", rank=rank, world_size=2, model=model, **how).sample(1)
    evaluator(tmp_path / "one", model=model, only_latents=True, batch_size=2).sample(1)

    def latents(folder: str, prompt: int) -> torch.Tensor:
        path = tmp_path / folder / f"samples/step-0000000001/p{prompt:03}-model.safetensors"
        with open_tensors(path) as tensors:
            return tensors.read("latents")

    assert list(tmp_path.rglob("*.mp4")) == []
    for prompt in (0, 1):
        assert latents("one", prompt).shape == (3, 16, 8, 12)
        assert torch.equal(latents("one", prompt), latents("two", prompt))
    assert not torch.equal(latents("one", 0), latents("one", 1))
    overviews = [path.read_text() for path in tmp_path.rglob("samples.json")]
    assert {json.loads(text)["samples"] for text in overviews} == {2}


@pytest.mark.usefixtures("groups")
def test_fixed_frames_are_those_of_the_clip_and_sdedit_changes_the_others(tmp_path: Path) -> None:
    model = tiny_model()
    made = evaluator(tmp_path, model=model, only_latents=True)
    encoded, _, _ = made.encoded([0])
    kept = encoded.latents[0, :1] / model.config.scale_factor

    sampled = []
    for sdedit in (False, True):
        model.sampler.config = replace(model.sampler.config, fixed_frames=1, sdedit=sdedit)
        sampled.append(made.sampled(0).latents)

    for latents in sampled:
        torch.testing.assert_close(latents[:1], kept)
    assert not torch.allclose(sampled[0][1:], sampled[1][1:])


@pytest.mark.usefixtures("groups")
@pytest.mark.parametrize("kind", ["5b_i2v", "1.5", "1.5_i2v"])
def test_networks_with_images_and_padding_are_validated_and_sampled(
    kind: str, tmp_path: Path
) -> None:
    made = evaluator(tmp_path, model=tiny_model(kind), batch_size=1, iterations=1)

    numbers = made(LoopState(step=1))

    assert math.isfinite(numbers["valid_loss"])
    (path,) = tmp_path.rglob("p000-model.mp4")
    assert len(decord.VideoReader(str(path))) == FRAMES


class Views(Clips):
    """One item with two views, which are the first two clips."""

    def __len__(self) -> int:
        return 1

    def read(self, index: int, position: int) -> dict[str, Any]:
        assert index == 0
        views = [super(Views, self).read(view, view) for view in (0, 1)]
        return {
            "mp4": torch.stack([view["mp4"] for view in views]),
            "txt": [view["txt"] for view in views],
            "key": "both",
        }


@pytest.mark.usefixtures("groups")
def test_two_views_of_a_clip_count_as_two_clips(tmp_path: Path) -> None:
    model = tiny_model()
    plain = evaluator(tmp_path, model=model, batch_size=2, iterations=1)
    views = evaluator(tmp_path, model=model, batch_size=1, iterations=1)
    views.source = Views()

    assert views.loss() == pytest.approx(plain.loss(), rel=1e-6)
    assert [batch.positions for batch in views.batches()] == [[0, 1]]
    torch.testing.assert_close(views.sampled(0).latents, plain.sampled(0).latents)
