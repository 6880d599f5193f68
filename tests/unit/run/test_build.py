"""Parts of a run from their configuration and weights."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from app.config.schema.model import ModelConfig
from app.config.target import Component
from app.conversion.export import export_safetensors
from app.diffusion.denoiser import Denoiser
from app.diffusion.guidance import ConstantGuidance, DynamicGuidance
from app.diffusion.samplers.ddim import DdimSampler
from app.diffusion.samplers.dpmpp_2m import SdeSampler
from app.errors import ConfigError, InputMissingError, WeightsError
from app.models.dit.transformer import DiffusionTransformer
from app.models.text.conditioner import Conditioner
from app.models.text.t5 import TinyT5, write_tiny_t5
from app.models.vae.autoencoder import VideoAutoencoder
from app.run.build import (
    InitialWeights,
    LoadOptions,
    OnDemandModule,
    build_modules,
    build_network,
    build_sampler,
)
from app.training.step import DiffusionModel
from tests.support.configs import base, load

SAMPLING = "sgm.modules.diffusionmodules.sampling"
CPU = torch.device("cpu")


def model_of(name: str = "tiny", *words: str) -> ModelConfig:
    model = load(*base(f"tiny/{name}"), *words).model
    assert model is not None
    return model


def initial(tmp_path: Path, url: str | None = None, **fields: Any) -> InitialWeights:
    plain: dict[str, Any] = {"is_resumed": False, "force": False, "seed": 3}
    return InitialWeights(url=url, cache_dir=tmp_path / "cache", **{**plain, **fields})


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Random weights of the tiny network, without LoRA."""
    config = model_of().network.params
    torch.manual_seed(1)
    network = DiffusionTransformer(config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    path = tmp_path / "model.safetensors"
    export_safetensors(path, network.state_dict(), config)
    return path


def same(left: DiffusionTransformer, right: DiffusionTransformer) -> bool:
    pairs = zip(left.parameters(), right.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_weights_from_scratch_follow_from_the_seed_alone(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first, report = build_network(model_of(), torch.bfloat16, initial(tmp_path))
    torch.manual_seed(2)
    second, _ = build_network(model_of(), torch.bfloat16, initial(tmp_path))
    other, _ = build_network(model_of(), torch.bfloat16, initial(tmp_path, seed=4))

    assert same(first, second)
    assert not same(first, other)
    assert {p.dtype for p in first.parameters()} == {torch.float32}  # the engine casts
    assert report.frozen_count == 0


def test_weights_of_a_file_come_in_the_dtype_of_training(tmp_path: Path, weights: Path) -> None:
    exact, _ = build_network(model_of(), torch.float32, initial(tmp_path, str(weights)))

    rounded, _ = build_network(model_of(), torch.bfloat16, initial(tmp_path, str(weights)))

    assert same(exact.bfloat16(), rounded)
    assert not any(p.is_meta for p in rounded.parameters())


def test_a_file_of_another_network_is_refused(tmp_path: Path, weights: Path) -> None:
    wider = model_of("tiny", "model.network_config.params.time_embed_dim=64")

    with pytest.raises(WeightsError) as caught:
        build_network(wider, torch.float32, initial(tmp_path, str(weights)))

    assert caught.value.exit_code == 65
    assert str(weights) in caught.value.where


def test_a_resumed_run_reads_the_file_only_for_what_is_frozen(
    tmp_path: Path, weights: Path
) -> None:
    gone = initial(tmp_path, str(tmp_path / "gone.safetensors"), is_resumed=True)

    everything_trains, _ = build_network(model_of(), torch.float32, gone)
    with pytest.raises(InputMissingError):
        build_network(model_of("tiny_lora"), torch.float32, gone)
    there = replace(gone, url=str(weights))
    with_pairs, _ = build_network(model_of("tiny_lora"), torch.float32, there)

    assert not any(p.is_meta for p in everything_trains.parameters())
    plain, _ = build_network(model_of(), torch.float32, initial(tmp_path, str(weights)))
    frozen = {name: p for name, p in with_pairs.named_parameters() if not p.requires_grad}
    wanted = dict(plain.named_parameters())
    assert frozen.keys() == wanted.keys()
    assert all(torch.equal(frozen[name], wanted[name]) for name in wanted)


def test_lora_trains_its_pairs_alone(tmp_path: Path) -> None:
    network, report = build_network(model_of("tiny_lora"), torch.float32, initial(tmp_path))

    training = {name for name, p in network.named_parameters() if p.requires_grad}

    assert all(name.endswith((".lora_a", ".lora_b")) for name in training)
    assert len(training) == 2 * 4 * 2  # layers, of q k v out, of a and b
    # rank 8: a 64 x 8 and an 8 x 64 matrix for each
    assert report.trainable_count == 2 * 4 * 2 * 64 * 8


@pytest.mark.parametrize("force", [False, True])
def test_force_keeps_the_start_of_a_module_that_the_file_lacks(
    force: bool, tmp_path: Path, weights: Path
) -> None:
    path = "model.network_config.params.modules.pos_embed_config.params.learnable_pos_embed"
    learned = model_of("tiny", f"{path}=true")
    wanted = initial(tmp_path, str(weights), force=force)

    if not force:
        with pytest.raises(WeightsError, match=r"position\.table"):
            build_network(learned, torch.float32, wanted)
        return
    network, _ = build_network(learned, torch.float32, wanted)
    scratch, _ = build_network(learned, torch.float32, initial(tmp_path))
    loaded, _ = build_network(model_of(), torch.float32, initial(tmp_path, str(weights)))

    table = network.state_dict()["position.table"]
    assert torch.equal(table, scratch.state_dict()["position.table"])
    rest = {n: t for n, t in network.state_dict().items() if n != "position.table"}
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in rest.items())


def test_a_class_that_cannot_be_imported_is_named_with_its_place(tmp_path: Path) -> None:
    model = model_of()
    part = Component("mine", "no_such_package.nets:Net", model.network.params)

    with pytest.raises(ConfigError, match=r"no_such_package\.nets:Net|no_such_package") as caught:
        build_network(replace(model, network=part), torch.float32, initial(tmp_path))

    assert caught.value.exit_code == 78
    assert "--register" in caught.value.fix


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        (f"{SAMPLING}.VPSDEDPMPP2MSampler", SdeSampler),
        (f"{SAMPLING}.VideoDDIMSampler", DdimSampler),
    ],
)
def test_the_sampler_is_the_configured_one_with_its_guidance(
    target: str, kind: type[object]
) -> None:
    model = model_of("tiny", f"model.sampler_config.target={target}")

    sampler = build_sampler(model.sampler, Denoiser(model.denoiser))

    assert type(sampler) is kind
    assert sampler.config.num_steps == 8
    assert isinstance(sampler.guidance, DynamicGuidance)
    vanilla = "sgm.modules.diffusionmodules.guiders.VanillaCFG"
    constant = model_of("tiny", f"model.sampler_config.params.guider_config.target={vanilla}")
    built = build_sampler(constant.sampler, Denoiser(constant.denoiser))
    assert isinstance(built.guidance, ConstantGuidance)


def test_frozen_parts_come_with_their_weights_in_evaluation_mode(tmp_path: Path) -> None:
    model = model_of()
    width = model.network.params.text_hidden_size
    write_tiny_t5(tmp_path / "t5", TinyT5(width=width), [f"clip {n}" for n in range(40)], 0)
    torch.manual_seed(5)
    vae = VideoAutoencoder(model.first_stage.params)
    torch.save({"state_dict": vae.state_dict()}, tmp_path / "3d-vae.pt")
    text = "model.conditioner_config.params.emb_models.0.params.model_dir"
    first_stage = "model.first_stage_config.params.ckpt_path"
    config = model_of("tiny", f"{text}={tmp_path}/t5", f"{first_stage}={tmp_path}/3d-vae.pt")
    network, _ = build_network(config, torch.float32, initial(tmp_path))

    parts = build_modules(config, network, LoadOptions(CPU, torch.float32, tmp_path))

    assert parts.network is network
    assert not parts.vae.training
    assert not any(p.requires_grad for p in parts.vae.parameters())
    stored = vae.state_dict()
    assert all(torch.equal(t, stored[name]) for name, t in parts.vae.state_dict().items())
    assert parts.conditioner.ucg_rate == 0.1
    assert parts.conditioner.embed(["clip 1", "clip 2"], None).shape == (2, 16, width)
    bf16 = build_modules(config, network, LoadOptions(CPU, torch.bfloat16, tmp_path))
    assert {p.dtype for p in bf16.vae.parameters()} == {torch.bfloat16}


class Loaded:
    """Counts how often it was built."""

    built = 0

    def __init__(self) -> None:
        type(self).built += 1

    def encode(self, given: Any, samples_at_a_time: int | None = None) -> Tensor:
        return torch.full((len(given), 2, 3), 1.0)

    def decode(self, latents: Tensor) -> Tensor:
        return latents + 1


def fresh() -> type[Loaded]:
    class One(Loaded):
        built = 0

    return One


def test_a_module_is_loaded_at_its_first_use_and_again_after_offload() -> None:
    kind = fresh()
    vae = OnDemandModule("VAE", kind)

    assert kind.built == 0
    assert torch.equal(vae.decode(torch.zeros(2)), torch.ones(2))
    vae.encode(torch.zeros(1, 9, 3, 8, 8))
    assert kind.built == 1
    vae.offload()
    vae.offload()
    assert kind.built == 1
    vae.decode(torch.zeros(2))
    assert kind.built == 2


def test_offload_frees_the_module() -> None:
    modules = [Loaded()]
    alive = weakref.ref(modules[0])
    vae = OnDemandModule("VAE", modules.pop)
    vae.decode(torch.zeros(2))

    assert alive() is not None
    vae.offload()
    assert alive() is None


def test_dropping_captions_does_not_call_the_encoder_back() -> None:
    kind = fresh()
    conditioner = Conditioner(OnDemandModule("text encoder", kind), ucg_rate=0.5)
    text = torch.ones(1, 2, 3)

    conditioner.drop(text, None)
    assert kind.built == 0
    assert conditioner.embed(["a cat"], None).shape == (1, 2, 3)
    assert kind.built == 1


def test_the_model_offloads_what_is_loaded_on_demand_and_keeps_the_rest() -> None:
    model = object.__new__(DiffusionModel)
    kind, resident = fresh(), Resident()
    encoder = OnDemandModule("text encoder", kind)
    encoder.encode(["a"])
    model.vae = resident  # type: ignore[assignment]
    model.conditioner = Conditioner(encoder, 0.0)

    model.offload()

    assert model.vae is resident
    encoder.encode(["a"])
    assert kind.built == 2


class Resident:
    """A module without `offload`."""

    def encode(self, captions: Sequence[str]) -> Tensor:
        return torch.zeros(len(captions))
