"""The examples of model parts of one's own: checked, built and used like any other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from app.config.runnable import lacking
from app.config.schema.model import ModelConfig
from app.distributed.seeding import KeyedDraws
from app.errors import ConfigError
from app.models.dit.transformer import DiffusionTransformer
from app.run.build import LoadOptions, build_modules
from app.training.step import DiffusionModel, Randomness
from examples.model_parts import NoisyDdim, PooledVae, WordHashes
from tests.support.configs import ROOT, base, load, mistakes

NAMES = ("pooled=PooledVae", "words=WordHashes", "noisy=NoisyDdim")
WORDS = (
    *base("tiny/tiny", "tiny/tiny_train", str(ROOT / "examples" / "model_parts.yaml")),
    *("--register", NAMES[0].replace("=", "=examples.model_parts:")),
    *("--register", NAMES[1].replace("=", "=examples.model_parts:")),
    *("--register", NAMES[2].replace("=", "=examples.model_parts:")),
)
CPU = torch.device("cpu")


@pytest.fixture
def model() -> ModelConfig:
    config = load(*WORDS)
    assert lacking(config).errors == []
    assert config.model is not None
    return config.model


def engine_of(model: ModelConfig, folder: Path) -> DiffusionModel:
    torch.manual_seed(3)
    network = DiffusionTransformer(model.network.params)
    parts = build_modules(model, network, LoadOptions(CPU, torch.float32, folder))
    randomness = Randomness(lambda positions: KeyedDraws(1, positions))
    return DiffusionModel(parts, model, randomness, device=CPU, dtype=torch.float32)


def batch() -> dict[str, object]:
    generator = torch.Generator().manual_seed(5)
    clips = torch.randint(0, 256, (2, 9, 3, 32, 64), dtype=torch.uint8, generator=generator)
    return {"mp4": clips, "txt": ["a red bird", "a bird"], "positions": [0, 1]}


def test_the_parts_are_those_of_the_example(model: ModelConfig, tmp_path: Path) -> None:
    engine = engine_of(model, tmp_path)

    kinds = [type(part) for part in (engine.vae, engine.conditioner.encoder, engine.sampler)]
    assert kinds == [PooledVae, WordHashes, NoisyDdim]
    assert not any(module.training for module in (engine.vae, engine.conditioner.encoder))


def test_a_step_trains_the_network_with_them(model: ModelConfig, tmp_path: Path) -> None:
    engine = engine_of(model, tmp_path)

    loss, _ = engine.shared_step(batch())
    loss.backward()

    assert bool(torch.isfinite(loss))
    assert any(p.grad is not None and bool(p.grad.any()) for p in engine.network.parameters())


def test_videos_are_sampled_and_decoded_with_them(model: ModelConfig, tmp_path: Path) -> None:
    shown = engine_of(model, tmp_path).log_video(batch(), N=1)

    assert shown["samples"].shape == shown["inputs"].shape == (1, 9, 3, 32, 64)
    assert bool(torch.isfinite(shown["samples"]).all())
    # The VAE keeps averages: of the first frame's top left cell, and of the next four frames'.
    clip, again = shown["inputs"][0], shown["reconstructions"][0]
    torch.testing.assert_close(again[0, :, 0, 0], clip[0, :, :8, :8].mean(dim=(1, 2)))
    torch.testing.assert_close(again[3, :, 9, 1], clip[1:5, :, 8:16, :8].mean(dim=(0, 2, 3)))


def test_equal_words_have_equal_embeddings() -> None:
    encoder = WordHashes({"max_length": 4, "width": 8})

    left, right = encoder.encode(["a red bird", "A bird"])

    assert torch.equal(left[0], right[0])
    assert torch.equal(left[2], right[1])
    assert not torch.equal(left[1], right[1])
    assert not bool(left[3].any())


def test_a_class_without_the_methods_of_its_role_is_refused(
    model: ModelConfig, tmp_path: Path
) -> None:
    words = list(WORDS)
    words[words.index("pooled=examples.model_parts:PooledVae")] = (
        "pooled=examples.model_parts:WordHashes"
    )
    wrong = load(*words).model
    assert wrong is not None

    with pytest.raises(ConfigError, match="WordHashes has no method decode") as caught:
        engine_of(wrong, tmp_path)

    assert caught.value.where == "model.first_stage_config.target"


@pytest.mark.parametrize(
    ("key", "role"),
    [
        ("model.network_config", "network"),
        ("model.loss_fn_config", "loss"),
        ("model.denoiser_config", "denoiser"),
        ("model.sampler_config.params.guider_config", "guidance"),
        ("model.conditioner_config", "conditioner"),
    ],
)
def test_other_roles_are_refused_by_name(key: str, role: str) -> None:
    found = mistakes(*WORDS, f"{key}.target=pooled")

    assert f"a class of your own cannot be a {role}: 'pooled'" in found[0]
    assert f"where: {key}.target" in found[0]
    assert "can be a dataset, a text encoder, a first stage, a sampler" in found[0]
