"""Tiny weights: real formats that our readers load strictly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from app.config.schema.model import ModelConfig
from app.conversion.loading import load_vae_weights
from app.conversion.sat import from_sat
from app.models.dit.transformer import DiffusionTransformer
from app.models.text.t5 import T5TextEncoder
from app.models.vae.autoencoder import VideoAutoencoder
from app.rehearsal.clips import Scene, all_captions, draw_scene
from app.rehearsal.tiny_parts import TinyParts, main, read_model_config, write_tiny_parts

YAML = str(Path(__file__).resolve().parents[3] / "configs" / "tiny" / "tiny.yaml")


@pytest.fixture(scope="module")
def model() -> ModelConfig:
    return read_model_config([YAML], [])


@pytest.fixture(scope="module")
def parts(model: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> TinyParts:
    return write_tiny_parts(tmp_path_factory.mktemp("parts"), model, seed=1)


@pytest.fixture(scope="module")
def vae(model: ModelConfig, parts: TinyParts) -> VideoAutoencoder:
    vae = VideoAutoencoder(model.first_stage.params)
    load_vae_weights(vae, parts.vae)
    return vae


def pixels() -> torch.Tensor:
    """Two scenes (2, 9, 3, 48, 64), -1 to 1, as painted."""

    scenes = (Scene("circle", "red", "left", "cloudy"), Scene("square", "blue", "up", "striped"))
    frames = [draw_scene(scene, (48, 64), 9, np.random.default_rng(99)) for scene in scenes]
    return torch.from_numpy(np.stack(frames)).permute(0, 1, 4, 2, 3) / 127.5 - 1


def test_text_encoder_reads_the_captions_of_the_demo_clips(
    model: ModelConfig, parts: TinyParts
) -> None:
    config = model.conditioner.text

    encoder = T5TextEncoder.load(parts.t5, config, torch.float32)
    embeddings = encoder.encode(all_captions())

    assert embeddings.shape == (384, 16, 32)
    assert encoder.truncated == 0
    assert len(embeddings.flatten(1).unique(dim=0)) == 384


def test_latents_of_a_scene_have_deviation_one(vae: VideoAutoencoder) -> None:
    posterior = vae.encode(pixels())

    assert 0.6 < posterior.mean.std() < 1.6
    assert posterior.logvar.max() < -5


def test_decoded_frames_are_in_a_sane_range(vae: VideoAutoencoder) -> None:
    video = pixels()

    decoded = vae.decode(vae.encode(video).mode())
    of_noise = vae.decode(torch.randn(1, 3, 4, 6, 8, generator=torch.Generator().manual_seed(0)))

    assert decoded.shape == video.shape
    assert decoded.abs().max() < 4
    assert of_noise.abs().max() < 4
    assert abs(decoded.mean() - video.mean()) < 0.3


def test_transformer_folder_is_what_upstreams_loader_opens(
    model: ModelConfig, parts: TinyParts
) -> None:
    tag = (parts.transformer / "latest").read_text()
    path = parts.transformer / tag / "mp_rank_00_model_states.pt"
    states = torch.load(path, weights_only=True)["module"]
    network = DiffusionTransformer(model.network.params)

    ours = dict(from_sat(states, states.__getitem__, str(path)))
    network.load_state_dict(ours)

    assert int(tag) > 0
    assert all(name.startswith("model.diffusion_model.") for name in states)
    assert network.patch.video.weight.abs().sum() > 0


def test_the_same_seed_gives_the_same_numbers(parts: TinyParts, tmp_path: Path) -> None:
    code = main([str(tmp_path), "--base", YAML, "--seed", "1"])

    assert code == 0
    for name in ("t5/model.safetensors", "t5/spiece.model"):
        assert (tmp_path / name).read_bytes() == (parts.t5.parent / name).read_bytes()
    for name in ("vae/3d-vae.pt", "transformer/1/mp_rank_00_model_states.pt"):
        files = (tmp_path / name, parts.t5.parent / name)
        again, first = (torch.load(path, weights_only=True) for path in files)
        torch.testing.assert_close(again, first, rtol=0, atol=0)


def test_mistakes_end_with_three_lines_and_an_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main([str(tmp_path), "--base", YAML, "--set", "model.scale_facto=1"])

    assert code == 78
    assert "scale_facto" in capsys.readouterr().err


def test_files_without_a_model_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "args.yaml").write_text("args:\n  seed: 1\n")

    code = main([str(tmp_path / "out"), "--base", str(tmp_path / "args.yaml")])

    assert code == 78
    assert "no section 'model'" in capsys.readouterr().err
