"""`cogvx convert`: what goes in comes out, bit for bit, and opens in the tools that people use."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from diffusers import CogVideoXImageToVideoPipeline, CogVideoXPipeline
from PIL import Image
from torch import Tensor

from app.checkpoint.tensor_file import open_tensors
from app.cli.main import main
from app.config.schema.diffusion import ScheduleConfig
from app.config.schema.model import DiTConfig, LoraConfig
from app.conversion.export import (
    SatForm,
    export_diffusers,
    export_lora,
    export_safetensors,
    export_sat,
)
from app.conversion.pipeline import scheduler_config
from app.models.dit.transformer import DiffusionTransformer
from app.storage.opening import open_storage
from tests.support.configs import CONFIGS
from tests.support.networks import KINDS, inputs, tiny
from tests.support.s3_servers import set_environment
from tests.support.tiny_run import TinyWorld

TINY = str(CONFIGS / "tiny/tiny.yaml")
# Rows that upstream's loader wants and nothing reads: spec of the SAT layout.
UNREAD = "position_embeddings"


def weights_of(config: DiTConfig) -> dict[str, Tensor]:
    torch.manual_seed(0)
    network = DiffusionTransformer(config)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".lora_" in name or (name == "position.table" and parameter.requires_grad):
                parameter.normal_(std=0.2)
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def fitting(kind: str) -> DiTConfig:
    """A tiny network that fits the tiny VAE (4 channels) and the tiny text encoder (32 wide)."""
    config = tiny(kind)
    is_i2v = config.in_channels > config.out_channels
    return replace(
        config,
        in_channels=8 if is_i2v else 4,
        out_channels=4,
        text_hidden_size=32,
        position=replace(config.position, text_length=16),
    )


def call(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    ended = main(["convert", *(str(word) for word in words), "--json"])
    shown = capsys.readouterr()
    assert ended == code, shown.err
    return dict(json.loads(shown.out)) if code == 0 else {"err": shown.err}


def sat_state(folder: Path, rank: int = 0) -> dict[str, Tensor]:
    path = folder / f"1/mp_rank_{rank:02}_model_states.pt"
    return dict(torch.load(path, weights_only=True)["module"])


def diffusers_state(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with open_tensors(path) as file:
            found |= {name: file.read(name) for name in file.names()}
    return found


def assert_same_bits(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name


@pytest.mark.parametrize(("shards", "layout"), [(1, "head"), (2, "head"), (1, "v1")])
@pytest.mark.parametrize("kind", KINDS)
def test_sat_comes_back_from_diffusers_bit_for_bit(
    kind: str,
    shards: int,
    layout: Literal["head", "v1"],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tiny(kind)
    if layout == "v1" and config.patch.frames > 1:
        layout = "head"  # 1.5 came after v1: it has this layout alone
    form = SatForm(layout=layout, shards=shards)
    export_sat(tmp_path / "sat", weights_of(config), config, form)
    back = ("--layout", layout, "--shards", shards)

    call(capsys, tmp_path / "sat", tmp_path / "diffusers", "--to", "diffusers", "--verify")
    call(capsys, tmp_path / "diffusers", tmp_path / "back", "--to", "sat", *back, "--verify")
    call(capsys, tmp_path / "sat", tmp_path / "again", "--to", "sat", *back)

    for rank in range(shards):
        expected = sat_state(tmp_path / "sat", rank)
        assert_same_bits(sat_state(tmp_path / "back", rank), expected)
        assert_same_bits(sat_state(tmp_path / "again", rank), expected)


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_comes_back_from_sat_bit_for_bit(
    kind: str, shards: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(kind)
    export_diffusers(tmp_path / "theirs", weights_of(config), config, torch.bfloat16)
    small_files = ("--max-shard-gib", 60_000 / 2**30)

    call(capsys, tmp_path / "theirs", tmp_path / "sat", "--to", "sat", "--shards", shards)
    call(capsys, tmp_path / "sat", tmp_path / "back", "--to", "diffusers", *small_files)

    assert len(list((tmp_path / "back").glob("*.safetensors"))) > 1
    assert_same_bits(diffusers_state(tmp_path / "back"), diffusers_state(tmp_path / "theirs"))
    configs = [
        json.loads((tmp_path / name / "config.json").read_text()) for name in ("theirs", "back")
    ]
    assert configs[0] == configs[1]


def test_a_vae_comes_back_both_ways_bit_for_bit(
    world: TinyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = world.weights / "vae/3d-vae.pt"
    scale = ("--part", "vae", "--base", TINY, "--verify")

    call(capsys, file, tmp_path / "folder", "--to", "diffusers", *scale)
    call(capsys, tmp_path / "folder", tmp_path / "back/3d-vae.pt", "--to", "sat", *scale)
    call(capsys, tmp_path / "back", tmp_path / "folder2", "--to", "diffusers", *scale)

    stored = torch.load(file, weights_only=True)
    state = {n: t for n, t in stored.get("state_dict", stored).items() if not n.startswith("loss.")}
    found = torch.load(tmp_path / "back/3d-vae.pt", weights_only=True)
    assert_same_bits(found.get("state_dict", found), state)
    assert_same_bits(diffusers_state(tmp_path / "folder2"), diffusers_state(tmp_path / "folder"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_converted_pipeline_samples_in_diffusers(
    kind: str, world: TinyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = fitting(kind)
    export_sat(tmp_path / "sat", weights_of(config), config)
    parts = ("--vae", world.weights / "vae/3d-vae.pt", "--t5", world.weights / "t5")
    call(
        capsys, tmp_path / "sat", tmp_path / "p", "--to", "diffusers", "--part", "pipeline", *parts
    )
    asked: dict[str, Any] = {
        "prompt": "a red cat",
        "num_frames": 9,  # 3 latent frames: 1.5 pads them to 4
        "height": 64,
        "width": 96,
        "num_inference_steps": 2,
        "use_dynamic_cfg": True,
        "max_sequence_length": 16,
        "output_type": "pt",
        "generator": torch.Generator().manual_seed(0),
    }

    if kind.endswith("i2v"):
        pipeline = CogVideoXImageToVideoPipeline.from_pretrained(tmp_path / "p")
        asked["image"] = Image.new("RGB", (96, 64), (200, 30, 30))
    else:
        pipeline = CogVideoXPipeline.from_pretrained(tmp_path / "p")
    pipeline.set_progress_bar_config(disable=True)
    video = pipeline(**asked).frames

    assert video.shape == (1, 9, 3, 64, 96)
    assert torch.isfinite(video).all()
    assert video.std() > 0


def test_a_pipeline_comes_back_as_the_files_that_a_training_reads(
    world: TinyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, t5 = world.weights / "transformer", world.weights / "t5"
    parts = ("--base", TINY, "--vae", world.weights / "vae/3d-vae.pt", "--t5", t5)
    whole = ("--part", "pipeline", "--verify")

    call(capsys, source, tmp_path / "p", "--to", "diffusers", *whole, *parts)
    done = call(capsys, tmp_path / "p", tmp_path / "back", "--to", "sat", *whole)

    assert_same_bits(
        {n: t for n, t in sat_state(tmp_path / "back/transformer").items() if UNREAD not in n},
        {n: t for n, t in sat_state(source).items() if UNREAD not in n},
    )
    for file in sorted(t5.iterdir()):
        assert (tmp_path / "back/t5-v1_1-xxl" / file.name).read_bytes() == file.read_bytes()
    assert set(done["verified"]) == {"network", "vae"}


@pytest.mark.parametrize("fold", ["--no-fold-scale", "--fold-scale"])
def test_lora_goes_to_sat_and_back_and_keeps_its_scale(
    fold: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = LoraConfig(rank=2, alpha=6.0, layer_range=(1,))
    config = tiny("5b", lora=lora)
    export_lora(tmp_path / "peft", weights_of(config), config, fold_scale=False)
    back = ("--to", "lora", "--no-fold-scale", "--verify")

    call(capsys, tmp_path / "peft", tmp_path / "sat", "--to", "sat", "--verify", fold)
    call(capsys, tmp_path / "sat", tmp_path / "back", *back)
    call(capsys, tmp_path / "sat", tmp_path / "folded", "--to", "lora", "--verify")

    name = "transformer.transformer_blocks.1.attn1.to_q.lora_{}.weight"
    before, after = diffusers_state(tmp_path / "peft"), diffusers_state(tmp_path / "back")
    assert set(after) == set(before)
    with open_tensors(tmp_path / "back/pytorch_lora_weights.safetensors") as file:
        alpha = json.loads(file.metadata["lora_adapter_metadata"])["transformer.lora_alpha"]
    assert alpha == (1.0 if fold == "--fold-scale" else 6.0)
    b, a = name.format("B"), name.format("A")
    torch.testing.assert_close(alpha * after[b] @ after[a], 6.0 * before[b] @ before[a])
    alone = diffusers_state(tmp_path / "folded")  # what a tool that ignores alpha computes
    torch.testing.assert_close(alone[b] @ alone[a], 6.0 / 2 * before[b] @ before[a])


def test_a_file_of_ours_and_a_bucket_are_sources_and_targets(
    world: TinyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny("5b")
    tensors = weights_of(config)
    export_safetensors(tmp_path / "ours.safetensors", tensors, config)
    with pytest.MonkeyPatch.context() as patch:
        set_environment(patch, world.environment(tmp_path / "tmp"))
        there = "s3://weights/converted"
        call(capsys, tmp_path / "ours.safetensors", there, "--to", "sat", "--verify")
        call(capsys, there, tmp_path / "back", "--to", "diffusers", "--dtype", "bf16", "--verify")
        refused = call(capsys, tmp_path / "ours.safetensors", there, "--to", "sat", code=2)
        scheduler = scheduler_config(ScheduleConfig(), "dpm") | {"prediction_type": "epsilon"}
        storage = open_storage(there)
        storage.write_small("scheduler/scheduler_config.json", json.dumps(scheduler).encode())
        other = call(capsys, there, tmp_path / "other", "--to", "diffusers", code=65)

    written = diffusers_state(tmp_path / "back")
    expected = tensors["blocks.0.mlp.up.weight"].to(torch.bfloat16)
    assert torch.equal(written["transformer_blocks.0.ff.net.0.proj.weight"], expected)
    assert "--overwrite" in refused["err"]
    assert "prediction_type 'epsilon' instead of 'v_prediction'" in other["err"]
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("peft", "--to", "diffusers"), 78, "holds only LoRA pairs"),
        (("sat", "--to", "lora"), 78, "has no LoRA pairs"),
        (("none", "--to", "sat"), 66, "none"),
        (("bare.pt", "--to", "diffusers"), 78, "--base configs/<model>.yaml"),
        (("sat", "--to", "sat", "--shards", "3"), 78, "divisor of the number of attention heads"),
        (("sat", "--to", "diffusers", "--layout", "v1"), 2, "--layout"),
        (("sat", "--to", "diffusers", "--part", "vae"), 66, "--vae"),
        (("sat", "--to", "diffusers", "--base", TINY), 65, "do not fit"),
        (("pipeline", "--to", "sat"), 65, "rescale_betas_zero_snr False instead of True"),
        (("pipeline/transformer", "--to", "sat"), 65, "rescale_betas_zero_snr False"),
    ],
)
def test_mistakes_name_their_remedy_and_write_nothing(
    words: tuple[str, ...],
    code: int,
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tiny("5b", lora=LoraConfig(rank=2, alpha=6.0))
    tensors = weights_of(config)
    export_lora(tmp_path / "peft", tensors, config)
    export_sat(
        tmp_path / "sat",
        {name: t for name, t in tensors.items() if ".lora_" not in name},
        replace(config, lora=None),
    )
    export_diffusers(tmp_path / "pipeline/transformer", tensors, config)
    scheduler = scheduler_config(ScheduleConfig(), "dpm") | {"rescale_betas_zero_snr": False}
    (tmp_path / "pipeline/scheduler").mkdir()
    (tmp_path / "pipeline/scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    shutil.copyfile(tmp_path / "sat/1/mp_rank_00_model_states.pt", tmp_path / "bare.pt")

    refused = call(capsys, tmp_path / words[0], tmp_path / "out", *words[1:], code=code)

    assert says in refused["err"]
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_the_converted_network_computes_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny("1.5_i2v")
    tensors = weights_of(config)
    export_sat(tmp_path / "sat", tensors, config)

    report = call(capsys, tmp_path / "sat", tmp_path / "d", "--to", "diffusers", "--verify")

    from diffusers import CogVideoXTransformer3DModel

    from app.models.dit.rotary import rotation_for
    from app.models.dit.tokens import grid_of

    theirs = CogVideoXTransformer3DModel.from_pretrained(tmp_path / "d")
    network = DiffusionTransformer(config)
    network.load_state_dict(tensors)
    latents, timesteps, given = inputs(config)
    rotary = rotation_for(grid_of(tuple(latents.shape), config.patch), config.head_dim, latents)
    assert given.image is not None
    with torch.no_grad():
        found = theirs(
            hidden_states=torch.cat([latents, given.image], dim=2),
            encoder_hidden_states=given.text,
            timestep=timesteps,
            ofs=given.ofs,
            image_rotary_emb=tuple(rotary),
        ).sample
        expected = network(latents, timesteps, given)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert report["verified"]["network"]["forward_max_difference"] == 0
