"""Mistakes in `model:`: each found, each with its path, all at once."""

from __future__ import annotations

import pytest

from app.config.sections.parse import parse_conditioner, parse_first_stage
from app.config.target import RegistryRow
from app.errors import ConfigErrors
from app.registry import TARGETS
from tests.support.configs import TINY, base, load, mistakes, section

N = "model.network_config.params"
POSITION = f"{N}.modules.pos_embed_config.params"
VAE = "model.first_stage_config.params"
T5 = "model.conditioner_config.params.emb_models.0"


@pytest.mark.parametrize(
    ("override", "what", "where"),
    [
        (f"{N}.num_layers=0", "'num_layers' is 0", f"{N}.num_layers"),
        (f"{N}.num_layers=two", "'num_layers' is 'two'", f"{N}.num_layers"),
        (f"{N}.num_layers=2.5", "'num_layers' is 2.5", f"{N}.num_layers"),
        (f"{N}.hidden_size=66", "not a multiple of num_attention_heads", f"{N}.hidden_size"),
        (f"{N}.num_attention_heads=8", "is 16, but hidden_size", f"{POSITION}.hidden_size_head"),
        (f"{N}.patch_size=[2,2]", "'patch_size' is [2, 2]", f"{N}.patch_size"),
        (f"{N}.ofs_embed_dim=64", "ofs_embed_dim is 64", f"{N}.ofs_embed_dim"),
        (f"{N}.num_classes=10", "'num_classes' is 10", f"{N}.num_classes"),
        (f"{N}.num_layer=2", "unknown key 'num_layer'", f"{N}.num_layer"),
        (f"{N}.transformer_args.layernorm_order=post", "'post'", "layernorm_order"),
        (f"{N}.transformer_args.is_decoder=true", "is True", "is_decoder"),
        (f"{N}.transformer_args.hidden_dropout_prob=0.1", "is 0.1", "hidden_dropout_prob"),
        (f"{N}.transformer_args.model_parallel_size=3", "use one of", "model_parallel_size"),
        (f"{N}.modules.patch_embed_config=null", "missing or empty", "patch_embed_config"),
        (f"{N}.modules.adaln_layer_config.target=a.B", "unknown target 'a.B'", "adaln"),
        (
            f"{N}.modules.lora_config.target=sat.model.finetune.lora2.LoraMixin",
            "'r' is missing",
            "r",
        ),
        ("model.scale_factor=0", "'scale_factor' is 0", "model.scale_factor"),
        ("model.noised_image_input=true", "needs channels for the image", f"{N}.in_channels"),
        ("model.lr_scale=2", "low-resolution path is broken", "model.lr_scale"),
        ("model.scale_facter=1", "did you mean 'scale_factor'", "model.scale_facter"),
        (f"{VAE}.encode_frames=6", "6, not a multiple of 4", "params.encode_frames"),
        (f"{VAE}.parking=ram", "one of device, host, disk", f"{VAE}.parking"),
        (f"{VAE}.tile_size=[256,250]", "250, not a multiple of 8", "params.tile_size"),
        (f"{VAE}.tile_size=[64,96]", "cannot overlap by 128", "params.tile_overlap"),
        (f"{VAE}.encoder_config.params.ch=24", "multiples of 32", "encoder_config.params.ch"),
        (f"{VAE}.encoder_config.params.z_channels=8", "8 in the encoder and 4", "z_channels"),
        (f"{VAE}.decoder_config.params.double_z=false", "is False", "double_z"),
        (f"{T5}.params.max_length=0", "'max_length' is 0", f"{T5}.params.max_length"),
        (f"{T5}.ucg_rate=1.5", "'ucg_rate' is 1.5", f"{T5}.ucg_rate"),
        (f"{T5}.is_trainable=true", "not supported", f"{T5}.is_trainable"),
        ("model.sampler_config.params.num_steps=1", "'num_steps' is 1", "num_steps"),
        ("model.sampler_config.target=EulerSampler", "unknown target", "sampler_config.target"),
        ("model.loss_fn_config=null", "missing or empty", "model.loss_fn_config"),
    ],
)
def test_one_mistake_one_message(override: str, what: str, where: str) -> None:
    found = mistakes(*TINY, override)

    assert len(found) == 1, found
    assert what in found[0]
    assert where in found[0]
    assert "fix:" in found[0]


def test_all_mistakes_are_reported_at_once() -> None:
    found = mistakes(
        *TINY,
        f"{N}.num_layer=2",
        "model.sampler_config.target=os.system",
        "model.scale_factor=big",
        "data.params.num_frames=10",
        "data.params.image_size=[64]",
        "args.train_itres=5",
        "deepspeed.zero_optimization.stage=7",
        "deepspeed.gradient_cliping=1",
    )

    text = "\n".join(found)
    assert len(found) == 8, text
    for part in (
        "num_layer",
        "os.system",
        "scale_factor",
        "image_size",
        "train_itres",
        "stage",
        "gradient_clipping",
    ):
        assert part in text


def test_unknown_target_lists_what_is_valid_there() -> None:
    found = mistakes(*TINY, "data.target=data_video.SFTDatset")

    assert "unknown target 'data_video.SFTDatset'" in found[0]
    assert "did you mean 'data_video.SFTDataset'?" in found[0]
    assert "--register NAME=package.module:Class" in found[0]


@pytest.mark.parametrize("target", ["os.system", "builtins.eval", "subprocess.Popen"])
def test_target_outside_the_table_is_never_imported(target: str) -> None:
    found = mistakes(*TINY, f"data.target={target}")

    assert len(found) == 1
    assert f"unknown target '{target}'" in found[0]


def test_known_target_in_the_wrong_place() -> None:
    found = mistakes(*TINY, "model.sampler_config.target=data_video.SFTDataset")

    assert "target 'data_video.SFTDataset' is not a sampler" in found[0]


def test_position_table_and_captions_must_have_one_length() -> None:
    found = mistakes(*base("cogvideox_2b", "sft"), f"{T5}.params.max_length=100")

    assert "captions have 100 tokens, the position table 226" in found[0]
    rotary = load(*base("cogvideox_5b", "sft"), f"{T5}.params.max_length=100")
    assert rotary.model is not None
    assert rotary.model.conditioner.text.max_length == 100


def test_latent_channels_of_vae_and_network_must_fit() -> None:
    found = mistakes(*TINY, f"{N}.in_channels=8", f"{N}.out_channels=8")

    assert "the VAE gives 4 latent channels, the network 8" in found[0]


def test_aliases_of_samplers_and_guidance() -> None:
    sampling = "sgm.modules.diffusionmodules"
    config = load(
        *TINY,
        f"model.sampler_config.target={sampling}.sampling.VideoDDIMSampler",
        f"model.sampler_config.params.guider_config.target={sampling}.guiders.VanillaCFG",
        "model.sampler_config.params.guider_config.params={scale: 4}",
    )

    assert config.model is not None
    sampler = config.model.sampler
    assert sampler.implementation == "app.diffusion.samplers.ddim:DdimSampler"
    assert sampler.params.guidance.implementation == "app.diffusion.guidance:ConstantGuidance"
    assert sampler.params.guidance.params.scale == 4
    assert any("'exp' has no effect: only DynamicCFG" in line for line in config.warnings)


def test_conditioner_needs_exactly_one_embedder() -> None:
    node = section("tiny/tiny", "model")["conditioner_config"]
    node["params"]["emb_models"] *= 2

    with pytest.raises(ConfigErrors, match="exactly one text embedder"):
        parse_conditioner(node, "model.conditioner_config", TARGETS)


def test_registered_classes_keep_their_params_unchecked() -> None:
    table = {
        **TARGETS,
        "mine.VAE": RegistryRow(dict, "my.vae:VAE"),
        "mine.T": RegistryRow(dict, "my.t:T"),
    }
    embedder = {"target": "mine.T", "params": {"width": 3}, "ucg_rate": 0.5}

    vae = parse_first_stage({"target": "mine.VAE", "params": {"a": 1}}, "x", table)
    text = parse_conditioner(
        {"target": "sgm.modules.GeneralConditioner", "params": {"emb_models": [embedder]}},
        "x",
        table,
    )

    assert (vae.implementation, vae.params) == ("my.vae:VAE", {"a": 1})
    assert (text.implementation, text.params, text.ucg_rate) == ("my.t:T", {"width": 3}, 0.5)


@pytest.mark.parametrize(
    ("params", "tokens"),
    [
        ({"max_length": 100}, 100),
        ({"length": 100}, 100),
        ({"length": 100, "max_length": 50}, 50),
        ({"length": "long"}, 77),  # its own business
        ({"length": 0}, 77),
        ({"length": True}, 77),
        ({}, 77),
    ],
)
def test_a_registered_text_encoder_says_its_number_of_tokens(
    params: dict[str, object], tokens: int
) -> None:
    table = {**TARGETS, "mine.T": RegistryRow(dict, "my.t:T")}
    embedder = {"target": "mine.T", "params": dict(params)}
    node = {"target": "sgm.modules.GeneralConditioner", "params": {"emb_models": [embedder]}}

    found = parse_conditioner(node, "x", table)

    assert (found.text.max_length, found.params) == (tokens, params)
