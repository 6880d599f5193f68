"""Which samples are made, in which order, and where the image of a prompt goes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from app.distributed.groups import ProcessGroups
from app.errors import InputMissingError
from app.evaluation.prompts import Prompt
from app.run.sample.output import LATENT, Item, Output
from app.run.sample.request import SampleRequest, VideoSize
from app.run.sample.sampling import Job, RankSampler, check_images, items_of, placed_image
from app.storage.local import LocalStorage

SIZE = VideoSize(latent_frames=3, rows=32, columns=64)


def test_samples_come_prompt_by_prompt() -> None:
    first, second = Prompt(0, "a cat"), Prompt(2, "a dog")

    found = items_of([first, second], 2)

    assert found == [Item(first, 0), Item(first, 1), Item(second, 0), Item(second, 1)]


def test_a_missing_image_is_found_before_anything_is_made(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "there.png")
    check_images([str(tmp_path / "there.png")] * 2)

    with pytest.raises(InputMissingError, match="gone"):
        check_images([str(tmp_path / "there.png"), str(tmp_path / "gone.png")])


@dataclass
class Conditioner:
    """Embeds a caption as the number of its letters, and keeps the captions."""

    captions: list[str] = field(default_factory=list)
    encoder: object = field(default_factory=object)

    def embed(self, captions: list[str], _: None) -> Tensor:
        self.captions += captions
        return torch.tensor([float(len(captions[0]))])


class RecordingSampler(RankSampler):
    """Writes what it would compute."""

    def _sample_one(self, item: Item, text: Tensor, progress: Any) -> None:
        progress(1, 2)
        record = self.output.write(item, None, text.reshape(1, 1, 1, 1), self._settings(item))
        self.made.append((item.position, record, None))


def test_samples_that_exist_are_skipped_with_their_captions(
    groups: ProcessGroups, tmp_path: Path
) -> None:
    steps: list[tuple[int, int, str]] = []
    request = SampleRequest(SIZE, 2, 8, 7, str(tmp_path), False, True, False, False)
    job = Job(None, None, request, groups, lambda *step: steps.append(step))  # type: ignore[arg-type]
    sampler_config = SimpleNamespace(config=SimpleNamespace(num_steps=2))

    def run(items: list[Item]) -> tuple[RecordingSampler, Conditioner]:
        conditioner = Conditioner()
        model: Any = SimpleNamespace(
            conditioner=conditioner, sampler=sampler_config, device=torch.device("cpu")
        )
        sampler = RecordingSampler(job, Output(LocalStorage(tmp_path), 8), model, {"weights": "w"})
        sampler.sample(items, keeps_text_encoder=False)
        return sampler, conditioner

    cat, dog = items_of([Prompt(0, "a cat")], 2), items_of([Prompt(1, "a big dog")], 2)
    run(cat)
    steps.clear()
    sampler, conditioner = run([*cat, *dog])

    assert sampler.skipped == cat
    assert [record["k"] for _, record, _ in sampler.made] == [0, 1]
    assert {record["prompt"] for _, record, _ in sampler.made} == {"a big dog"}
    # Once for two samples, and those of what exists not at all.
    assert conditioner.captions == ["a big dog"]
    assert not hasattr(conditioner, "encoder")  # its memory is for the network
    assert steps == [(1, 4, "sample 1 of 2"), (3, 4, "sample 2 of 2")]
    assert all((tmp_path / f"1_a_big_dog/{k}" / LATENT).stat().st_size for k in (0, 1))


class Moments:
    """A posterior without noise, made by shrinking a frame by eight; keeps three channels."""

    def encode(self, frames: Tensor) -> Moments:
        self.latent = torch.nn.functional.avg_pool2d(frames[:, 0].float(), 8)[:, None]
        return self

    def draw(self, draws: object, name: str) -> Tensor:
        assert name == "image_posterior"
        return self.latent


def model_of(patch_frames: int) -> Any:
    patch = SimpleNamespace(frames=patch_frames, rows=2, columns=2)
    network = SimpleNamespace(params=SimpleNamespace(patch=patch))
    return SimpleNamespace(
        config=SimpleNamespace(network=network, noised_image_all_concat=False),
        on_device=lambda x: x,
        pixels=lambda x: x,
        vae=Moments(),
        image_latent_scale=0.5,
    )


@pytest.mark.parametrize(
    ("patch_frames", "image_size", "expected"),
    [(1, (40, 90), (32, 64)), (2, (100, 200), (32, 64)), (2, (200, 100), (64, 32))],
)
def test_1_5_keeps_the_proportions_of_the_image_and_1_0_crops_it(
    tmp_path: Path, patch_frames: int, image_size: tuple[int, int], expected: tuple[int, int]
) -> None:
    path = tmp_path / "a.png"
    rows, columns = image_size
    Image.new("RGB", (columns, rows), (200, 100, 50)).save(path)

    latent, size = placed_image(model_of(patch_frames), str(path), SIZE, None)  # type: ignore[arg-type]

    assert (size.rows, size.columns, size.latent_frames) == (*expected, 3)
    frames = 4 if patch_frames == 2 else 3  # 1.5 pads to whole patches in time
    assert latent.shape == (1, frames, 3, expected[0] // 8, expected[1] // 8)
    assert [latent[0, 0, c].unique().tolist() for c in range(3)] == [[100.0], [50.0], [25.0]]
    assert not latent[:, 1:].any()
