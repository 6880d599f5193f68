"""`cogvx sample` from tiny weights: what it writes, and that nothing but its inputs decides it."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.checkpoint.tensor_file import open_tensors
from app.cli.main import main
from app.evaluation.video_file import read_image
from app.run.arguments import leave_distributed
from tests.support.configs import CONFIGS
from tests.support.s3_servers import set_environment
from tests.support.tiny_run import (
    TinyWorld,
    clean_environment,
    cogvx,
    frozen_parts_at,
    run_python,
)

TINY = str(CONFIGS / "tiny/tiny.yaml")
FAST = "model.sampler_config.params.num_steps=2"
# What makes image-to-video models of the tiny one: 1.0 learns its positions, 1.5 has time patches.
I2V = [
    "model.network_config.params.in_channels=8",
    "model.noised_image_input=true",
]
I2V_1P5 = [
    *I2V,
    "model.network_config.params.patch_size=[2,2,2]",
    "model.network_config.params.ofs_embed_dim=32",
    "model.network_config.params.num_frames=13",
]


@dataclass(frozen=True)
class Made:
    """What one call left behind."""

    folder: Path
    report: dict[str, Any]

    def video(self, name: str) -> str:
        return hashlib.sha256((self.folder / name).read_bytes()).hexdigest()

    @property
    def videos(self) -> dict[str, str]:
        found = sorted(self.folder.rglob("*.mp4"))
        return {path.relative_to(self.folder).as_posix(): self.video(str(path)) for path in found}


@pytest.fixture(autouse=True)
def alone(world: TinyWorld, tmp_path: Path) -> Iterator[None]:
    """This process is a lone rank that knows the server."""
    with pytest.MonkeyPatch.context() as patch:
        set_environment(patch, world.environment(tmp_path / "tmp"))
        yield
    leave_distributed()


def words(world: TinyWorld, out: object, *more: str) -> list[str]:
    weights = str(world.weights)
    load = ["--load", f"{weights}/transformer"]
    return ["sample", "--base", TINY, *load, "--out", str(out), *frozen_parts_at(weights), *more]


def sample(
    capsys: pytest.CaptureFixture[str], words: Sequence[str], folder: Path, code: int = 0
) -> Made:
    capsys.readouterr()
    ended = main([*words, FAST, "--json"])
    shown = capsys.readouterr()
    assert ended == code, shown.err
    return Made(folder, json.loads(shown.out) if not code else {"err": shown.err})


def frames_of(path: Path) -> np.ndarray[Any, Any]:
    import imageio_ffmpeg

    reader = imageio_ffmpeg.read_frames(str(path))
    columns, rows = next(reader)["size"]
    return np.stack([np.frombuffer(frame, np.uint8).reshape(rows, columns, 3) for frame in reader])


def test_prompts_of_a_file_become_videos_and_one_contact_sheet(
    world: TinyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red cat\r\n\n a blue\u2028dog\n", encoding="utf-8", newline="")
    asked = ("--input-type", "txt", "--input-file", str(prompts), "--batch-size", "2")
    more = ("--size", "32x48", "--num-frames", "5", "--sampling-fps", "4", "--save-latents")

    made = sample(capsys, words(world, tmp_path / "out", *asked, *more), tmp_path / "out")

    assert list(made.videos) == [
        f"{folder}/{k}/000000.mp4" for folder in ("0_a_red_cat", "2_a_blue_dog") for k in (0, 1)
    ]
    assert len(set(made.videos.values())) == 4
    assert frames_of(made.folder / "0_a_red_cat/0/000000.mp4").shape == (5, 32, 48, 3)
    with open_tensors(made.folder / "0_a_red_cat/0/latent.safetensors") as tensors:
        assert tensors.read("latents").shape == (2, 4, 4, 6)
    record = json.loads((made.folder / "2_a_blue_dog/1/sample.json").read_text())
    assert (record["prompt"], record["k"], record["fps"]) == ("a blue\u2028dog", 1, 4)
    with Image.open(made.folder / "contact_sheet.png") as sheet:
        assert sheet.height >= 4 * 32
    assert made.report["made"] == 4
    assert [s["prompt"] for s in made.report["samples"]] == ["a red cat"] * 2 + [
        "a blue\u2028dog"
    ] * 2


def test_a_sample_depends_on_its_seed_and_number_alone_and_is_not_made_twice(
    world: TinyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = ("--prompt", "a cat"), ("--prompt", "a dog")
    per = ("--batch-size", "1")
    first = sample(capsys, words(world, tmp_path / "a", *one, *per), tmp_path / "a")
    other = sample(capsys, words(world, tmp_path / "b", *one, *per, "--seed", "7"), tmp_path / "b")

    went_on = sample(capsys, words(world, tmp_path / "a", *one, *two, *per), tmp_path / "a")

    name = "0_a_cat/0/000000.mp4"
    assert went_on.videos[name] == first.video(name) != other.video(name)
    assert (went_on.report["made"], went_on.report["skipped"]) == (1, 1)
    assert [s["prompt"] for s in went_on.report["samples"]] == ["a cat", "a dog"]
    refused = sample(
        capsys, words(world, tmp_path / "a", *one, *per, "--seed", "7"), tmp_path / "a", 78
    )
    assert "its seed differ" in refused.report["err"]
    anew = words(world, tmp_path / "a", *one, *per, "--seed", "7", "--overwrite")
    assert sample(capsys, anew, tmp_path / "a").video(name) == other.video(name)


def test_changed_weights_and_lost_files_are_noticed(
    world: TinyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "weights"
    shutil.copytree(world.weights / "transformer", weights)
    out = tmp_path / "out"
    asked = words(world, out, "--prompt", "Ein grüner Ball, 50% Off", "--load", str(weights))
    first = sample(capsys, asked, out)
    (name,) = first.videos
    before = first.video(name)
    (out / name).unlink()

    again = sample(capsys, asked, out)
    latents = sample(capsys, [*asked, "--save-latents"], out)
    scaled = sample(capsys, [*asked, "model.scale_factor=0.5"], out, 78)
    (weights / "1/mp_rank_00_model_states.pt").touch()
    touched = sample(capsys, asked, out, 78)

    assert name == "0_Ein_grüner_Ball_50_Off/0/000000.mp4"
    assert again.report["made"] == 1
    assert again.video(name) == before
    assert latents.report["samples"][0]["files"][1].endswith("latent.safetensors")
    assert "model_sha256 differ" in scaled.report["err"]
    assert "versions differ" in touched.report["err"]


def test_only_save_latents_leaves_the_videos_out_and_force_inference_takes_what_is_there(
    world: TinyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    lacked = "model.network_config.params.ofs_embed_dim=32"
    asked = words(world, out, "--prompt", "a cat", "--batch-size", "1", lacked)

    refused = sample(capsys, asked, out, 65)
    made = sample(capsys, [*asked, "--force-inference", "--only-save-latents"], out)

    assert "ofs_embed" in refused.report["err"]
    assert made.report["samples"][0]["files"] == ["0_a_cat/0/latent.safetensors"]
    assert made.videos == {}


def test_upstreams_sizes_are_those_of_the_videos(
    world: TinyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--prompt", "a cat", "--batch-size", "1", "--sampling-num-frames", "2")
    size = ("--sampling-image-size", "48", "32")
    there = f"args.output_dir={tmp_path / 'there'}"

    made = sample(
        capsys,
        [word for word in words(world, there, *asked, *size) if word != "--out"],
        tmp_path / "there",
    )

    assert frames_of(tmp_path / "there/0_a_cat/0/000000.mp4").shape == (5, 48, 32, 3)
    assert made.report["samples"][0]["latent_frames"] == 2


def test_typed_prompts_go_to_a_bucket(
    world: TinyWorld,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("a cat\na dog\n"))
    bucket = world.server.folder / "runs/sampled"
    asked = ("--input-type", "cli", "--batch-size", "1")

    made = sample(capsys, words(world, "s3://runs/sampled", *asked), bucket)

    assert list(made.videos) == ["0_a_cat/0/000000.mp4", "1_a_dog/0/000000.mp4"]
    assert (bucket / "contact_sheet.png").is_file()


@pytest.mark.parametrize(
    ("changes", "size", "frames"),
    [
        (I2V, (32, 64), 9),
        pytest.param(I2V_1P5, (32, 48), 13, marks=pytest.mark.slow),
    ],
)
def test_image_to_video_begins_with_its_image(
    world: TinyWorld,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: list[str],
    size: tuple[int, int],
    frames: int,
) -> None:
    parts = tmp_path / "parts"
    made_parts = run_python(
        ["-m", "app.rehearsal.tiny_parts", str(parts), "--base", TINY, "--set", *changes],
        clean_environment(tmp_path / "tmp"),
    )
    assert made_parts.code == 0, made_parts.err
    images = []
    for name, colour in (("red", (220, 40, 30)), ("blue", (20, 40, 200))):
        images.append(tmp_path / f"{name}.png")
        Image.new("RGB", (96, 64), colour).save(images[-1])
    assert read_image(images[0]).shape == (3, 64, 96)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"it moves@@{image}\n" for image in images))
    asked = ("--input-type", "txt", "--input-file", str(prompts), "--image2video")
    more = ("--batch-size", "1", "--load", f"{parts}/transformer", *frozen_parts_at(str(parts)))

    made = sample(capsys, words(world, tmp_path / "out", *asked, *more, *changes), tmp_path / "out")

    first, second = (frames_of(made.folder / name) for name in made.videos)
    assert first.shape == second.shape == (frames, *size, 3)
    # One caption, another number of the prompt: what differs beside the noise is the image.
    assert [s["image"] for s in made.report["samples"]] == [str(image) for image in images]


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        (["--prompt", "a cat", "--size", "30x64"], 78, "not a multiple of 16"),
        (["--prompt", "a cat", "--num-frames", "8"], 78, "use 5 or 9"),
        (["--prompt", " "], 2, "--prompt is empty"),
        (["--prompt", "a ball@@b.png"], 65, "makes videos from text"),
        (["--prompt", "a ball", "--weights", "ema"], 2, "add --run"),
        (["--prompt", "a", *I2V, "--image", "/none.png"], 66, "/none.png"),
        (["--prompt", "a cat", "--image", "a.png"], 2, "leave --image out"),
        (["--image", "a.png"], 2, "--image needs --prompt"),
        (["--input-type", "txt", "--input-file", "none.txt"], 66, "no such file of prompts"),
        (["--prompt", "a cat", "--image2video"], 78, "the network takes no image"),
        (
            ["--prompt", "a", "model.sampler_config.params.fixed_frames=1"],
            78,
            "sampling has no clip",
        ),
        (["--prompt", "a cat", "args.sampling_image_size=[32,50]"], 78, "not a multiple of 16"),
        (["--prompt", "a cat", "args.sampling_num_frames=3", "args.load=/none"], 66, "/none"),
    ],
)
def test_mistakes_are_named_before_weights_are_read(
    world: TinyWorld,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    code: int,
    says: str,
) -> None:
    refused = sample(capsys, words(world, tmp_path / "out", *more), tmp_path / "out", code)

    assert says in refused.report["err"]
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_two_ranks_make_what_one_makes(
    world: TinyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--prompt", "a cat", "--prompt", "a dog", "--prompt", "a cow", "--batch-size", "1")
    one = sample(capsys, words(world, tmp_path / "one", *asked), tmp_path / "one")
    shared = [*words(world, tmp_path / "two", *asked), FAST, "--nproc-per-node", "2", "--json"]

    ended = cogvx(shared, world.environment(tmp_path / "tmp"))

    assert ended.code == 0, ended.err[-3000:]
    two = Made(tmp_path / "two", {})
    assert two.videos == {name: one.video(str(one.folder / name)) for name in one.videos}
    assert len(two.videos) == 3
    assert two.video("contact_sheet.png") == one.video("contact_sheet.png")
