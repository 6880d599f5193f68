"""Tiny weights: real formats that our readers load strictly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from app.config.schema.model import ModelConfig
from app.conversion.sat import from_sat
from app.models.dit.transformer import DiffusionTransformer
from app.models.text.t5 import T5TextEncoder
from app.models.vae.autoencoder import VideoAutoencoder
from app.rehearsal.clips import Scene, all_captions, draw_scene
from app.rehearsal.tiny_parts import TinyParts, main, read_model_config, write_tiny_parts

MODEL = """
model:
  scale_factor: 0.7
  denoiser_config:
    target: sgm.modules.diffusionmodules.denoiser.DiscreteDenoiser
    params:
      num_idx: 1000
      quantize_c_noise: false
      weighting_config: {target: sgm.modules.diffusionmodules.denoiser_weighting.EpsWeighting}
      scaling_config: {target: sgm.modules.diffusionmodules.denoiser_scaling.VideoScaling}
      discretization_config: &schedule
        target: sgm.modules.diffusionmodules.discretizer.ZeroSNRDDPMDiscretization
        params: {shift_scale: 1.0}
  network_config:
    target: dit_video_concat.DiffusionTransformer
    params:
      time_embed_dim: 16
      elementwise_affine: true
      num_frames: 9
      time_compressed_rate: 4
      latent_width: 8
      latent_height: 6
      num_layers: 2
      patch_size: [1, 2, 2]
      in_channels: 4
      out_channels: 4
      hidden_size: 32
      num_attention_heads: 2
      transformer_args: {model_parallel_size: 1}
      modules:
        pos_embed_config:
          target: dit_video_concat.Rotary3DPositionEmbeddingMixin
          params: {hidden_size_head: 16, text_length: 16}
        patch_embed_config:
          target: dit_video_concat.ImagePatchEmbeddingMixin
          params: {text_hidden_size: 16}
        adaln_layer_config:
          target: dit_video_concat.AdaLNMixin
          params: {qk_ln: true}
        final_layer_config: {target: dit_video_concat.FinalLayerMixin}
  conditioner_config:
    target: sgm.modules.GeneralConditioner
    params:
      emb_models:
        - is_trainable: false
          input_key: txt
          ucg_rate: 0.1
          target: sgm.modules.encoders.modules.FrozenT5Embedder
          params: {model_dir: t5, max_length: 16}
  first_stage_config:
    target: vae_modules.autoencoder.VideoAutoencoderInferenceWrapper
    params:
      cp_size: 1
      ckpt_path: 3d-vae.pt
      encoder_config:
        target: vae_modules.cp_enc_dec.ContextParallelEncoder3D
        params: &coder {ch: 32, ch_mult: [1, 1, 1, 1], num_res_blocks: 1, z_channels: 4}
      decoder_config:
        target: vae_modules.cp_enc_dec.ContextParallelDecoder3D
        params: *coder
  loss_fn_config:
    target: sgm.modules.diffusionmodules.loss.VideoDiffusionLoss
    params:
      offset_noise_level: 0
      sigma_sampler_config:
        target: sgm.modules.diffusionmodules.sigma_sampling.DiscreteSampling
        params: {uniform_sampling: true, num_idx: 1000, discretization_config: *schedule}
  sampler_config:
    target: sgm.modules.diffusionmodules.sampling.VPSDEDPMPP2MSampler
    params:
      num_steps: 50
      discretization_config: *schedule
      guider_config:
        target: sgm.modules.diffusionmodules.guiders.DynamicCFG
        params: {scale: 6, exp: 5, num_steps: 50}
"""


@pytest.fixture(scope="module")
def yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(MODEL)
    return path


@pytest.fixture(scope="module")
def model(yaml: Path) -> ModelConfig:
    return read_model_config([str(yaml)], [])


@pytest.fixture(scope="module")
def parts(model: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> TinyParts:
    return write_tiny_parts(tmp_path_factory.mktemp("parts"), model, seed=1)


@pytest.fixture(scope="module")
def vae(model: ModelConfig, parts: TinyParts) -> VideoAutoencoder:
    vae = VideoAutoencoder(model.first_stage.params)
    state = torch.load(parts.vae, weights_only=True)["state_dict"]
    vae.load_weights(state, where=str(parts.vae))
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

    assert embeddings.shape == (384, 16, 16)
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


def test_the_same_seed_gives_the_same_numbers(yaml: Path, parts: TinyParts, tmp_path: Path) -> None:
    code = main([str(tmp_path), "--base", str(yaml), "--seed", "1"])

    assert code == 0
    for name in ("t5/model.safetensors", "t5/spiece.model"):
        assert (tmp_path / name).read_bytes() == (parts.t5.parent / name).read_bytes()
    for name in ("vae/3d-vae.pt", "transformer/1/mp_rank_00_model_states.pt"):
        files = (tmp_path / name, parts.t5.parent / name)
        again, first = (torch.load(path, weights_only=True) for path in files)
        torch.testing.assert_close(again, first, rtol=0, atol=0)


def test_mistakes_end_with_three_lines_and_an_exit_code(
    yaml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main([str(tmp_path), "--base", str(yaml), "--set", "model.scale_facto=1"])

    assert code == 78
    assert "scale_facto" in capsys.readouterr().err


def test_files_without_a_model_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "args.yaml").write_text("args:\n  seed: 1\n")

    code = main([str(tmp_path / "out"), "--base", str(tmp_path / "args.yaml")])

    assert code == 78
    assert "no section 'model'" in capsys.readouterr().err
