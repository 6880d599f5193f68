"""What a run exports opens in the tools that people use, and means the same there."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from torch import Tensor

from app.checkpoint.tensor_file import open_tensors
from app.config.load import load_config
from app.config.schema.model import DiTConfig
from app.conversion.loading import load_lora_weights, load_network_weights
from app.models.conditioning import Conditioning
from app.models.dit.transformer import DiffusionTransformer
from app.registry import TARGETS
from tests.support.configs import CONFIGS
from tests.support.tiny_run import TinyWorld, cogvx, frozen_parts_at

VALIDATE = ("args.valid_data=[s3://clips/valid]", "args.eval_interval=3", "args.eval_iters=1")
LEARN = ("args.train_iters=3", "args.lr=0.02")


@dataclass(frozen=True)
class Exported:
    """Local paths of what two runs exported: the whole network, then a LoRA on top of it."""

    full: Path
    diffusers: Path
    lora: Path
    lora_config: DiTConfig
    samples: Path


@pytest.fixture(scope="module")
def exported(world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    scratch = tmp_path_factory.mktemp("exported")
    environment = world.environment(scratch / "tmp")

    def call(*words: str) -> str:
        ended = cogvx(words, environment)
        assert ended.code == 0, ended.err[-3000:]
        return ended.out

    call(*world.words("exported", *LEARN, *VALIDATE))
    (full,) = json.loads(call("export", "s3://runs/exported", "--json"))["files"]
    call("export", "s3://runs/exported", "--kind", "diffusers", "--out", str(scratch / "diffusers"))
    base = full.rpartition("/")[0]
    lora_words = world.words("exported-lora", *LEARN, f"args.load={base}", model="tiny_lora")
    call(*lora_words)
    call("export", "s3://runs/exported-lora", "--out", str(scratch / "lora"))
    config = load_config(lora_words[1:], TARGETS)
    assert config.model is not None
    return Exported(
        full=world.server.folder / base.removeprefix("s3://"),
        diffusers=scratch / "diffusers",
        lora=scratch / "lora/pytorch_lora_weights.safetensors",
        lora_config=config.model.network.params,
        samples=world.server.folder / "runs/exported/samples/step-0000000003",
    )


def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "latents": torch.randn(2, 3, 4, 4, 8, generator=generator),
        "text": torch.randn(2, 16, 32, generator=generator),
        "timesteps": torch.tensor([40, 700]),
    }


def ours(network: DiffusionTransformer) -> Tensor:
    given = inputs()
    network.eval()
    with torch.no_grad():
        return network(given["latents"], given["timesteps"], Conditioning(text=given["text"]))


def theirs(transformer: torch.nn.Module) -> Tensor:
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    given = inputs()
    rows, columns = 2, 4  # patches of 4 x 8 latents
    rotary = get_3d_rotary_pos_embed(16, ((0, 0), (rows, columns)), (rows, columns), 3)
    with torch.no_grad():
        return transformer(
            hidden_states=given["latents"],
            encoder_hidden_states=given["text"],
            timestep=given["timesteps"],
            image_rotary_emb=rotary,
            return_dict=False,
        )[0]


def network_with_lora(exported: Exported) -> DiffusionTransformer:
    network = DiffusionTransformer(exported.lora_config)
    load_network_weights(network, exported.full)
    load_lora_weights(network, exported.lora)
    return network


def test_the_lora_loads_in_diffusers_without_a_key_too_many_or_too_few(exported: Exported) -> None:
    from diffusers import CogVideoXTransformer3DModel

    transformer = CogVideoXTransformer3DModel.from_pretrained(exported.diffusers).eval()
    base = theirs(transformer)

    transformer.load_lora_adapter(exported.lora, prefix="transformer")

    with open_tensors(exported.lora) as file:
        exported_names = {name.removeprefix("transformer.") for name in file.names()}
    loaded = {
        name.replace(".default_0.", ".").replace(".default.", ".")
        for name, _ in transformer.named_parameters()
        if "lora_" in name
    }
    assert loaded == exported_names
    with_lora = theirs(transformer)
    assert not torch.allclose(with_lora, base, atol=1e-4)
    torch.testing.assert_close(with_lora, ours(network_with_lora(exported)), atol=1e-4, rtol=1e-4)


def test_the_whole_model_means_the_same_in_diffusers(exported: Exported) -> None:
    from diffusers import CogVideoXTransformer3DModel

    transformer = CogVideoXTransformer3DModel.from_pretrained(exported.diffusers).eval()
    network = DiffusionTransformer(replace(exported.lora_config, lora=None))
    report = load_network_weights(network, exported.full)

    assert report.num_tensors == len(list(network.parameters()))
    torch.testing.assert_close(theirs(transformer), ours(network), atol=1e-4, rtol=1e-4)


def test_a_sample_video_has_the_frames_and_size_of_the_clips(exported: Exported) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", "p000-model.mp4"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]

    raw = subprocess.run(command, cwd=exported.samples, capture_output=True, check=True).stdout

    frames = np.frombuffer(raw, np.uint8).reshape(-1, 32, 64, 3)
    assert len(frames) == 9


@pytest.mark.slow
def test_a_run_samples_as_its_export_does(
    exported: Exported, world: TinyWorld, tmp_path: Path
) -> None:
    environment = world.environment(tmp_path / "tmp")
    asked = ("--prompt", "a red ball", "--batch-size", "1", "--seed", "3")
    fast = "model.sampler_config.params.num_steps=2"

    def video(name: str, *words: str) -> bytes:
        ended = cogvx(["sample", *words, *asked, "--out", str(tmp_path / name), fast], environment)
        assert ended.code == 0, ended.err[-3000:]
        return (tmp_path / name / "0_a_red_ball/0/000000.mp4").read_bytes()

    lora = str(CONFIGS / "tiny/tiny_lora.yaml")
    files = ("--load", str(exported.full), "--lora", str(exported.lora))
    parts = frozen_parts_at("s3://weights/tiny")

    assert video("run", "--run", "s3://runs/exported-lora") == video(
        "files", "--base", lora, *files, *parts
    )
