from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from app.config.schema.model import DiTConfig, LoraConfig
from app.errors import ConfigError
from app.models.conditioning import Conditioning
from app.models.dit.initialization import init_from_scratch
from app.models.dit.transformer import DiffusionTransformer
from tests.support.networks import KINDS, inputs, tiny


def network_of(config: DiTConfig, dtype: torch.dtype = torch.float64) -> DiffusionTransformer:
    network = DiffusionTransformer(config, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    init_from_scratch(network, generator, zero_gates=False)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".lora_" in name or (name == "position.table" and parameter.requires_grad):
                parameter.normal_(std=0.1, generator=generator)
    return network


def gradients(network: nn.Module, output: Tensor) -> dict[str, Tensor]:
    network.zero_grad()
    output.square().sum().backward()
    return {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
def test_output_has_the_shape_of_the_noisy_latents(kind: str) -> None:
    latents, timesteps, conditioning = inputs(tiny(kind))

    output = network_of(tiny(kind))(latents, timesteps, conditioning)

    assert output.shape == latents.shape
    assert output.dtype == torch.float64


@pytest.mark.parametrize("kind", KINDS)
def test_samples_of_a_batch_do_not_touch_each_other(kind: str) -> None:
    network, (latents, timesteps, conditioning) = network_of(tiny(kind)), inputs(tiny(kind))

    both = network(latents, timesteps, conditioning)

    for index in range(2):
        one = slice(index, index + 1)
        image = None if conditioning.image is None else conditioning.image[one]
        alone = Conditioning(conditioning.text[one], image, conditioning.ofs)
        torch.testing.assert_close(network(latents[one], timesteps[one], alone), both[one])


def test_a_guided_call_gives_both_answers_first_those_without_captions() -> None:
    config = tiny("1.5_i2v")
    network, (latents, timesteps, conditional) = network_of(config), inputs(config)
    unconditional = replace(conditional, text=torch.zeros_like(conditional.text))

    both = conditional.for_guidance()
    output = network(torch.cat([latents, latents]), torch.cat([timesteps, timesteps]), both)

    torch.testing.assert_close(output[:2], network(latents, timesteps, unconditional))
    torch.testing.assert_close(output[2:], network(latents, timesteps, conditional))


def test_image_latent_is_joined_after_the_noisy_channels() -> None:
    config = tiny("5b_i2v")
    network, (latents, timesteps, conditioning) = network_of(config), inputs(config)
    assert conditioning.image is not None

    apart = network(latents, timesteps, conditioning)

    whole = torch.cat([latents, conditioning.image], dim=2)
    text_only = Conditioning(conditioning.text)
    torch.testing.assert_close(apart, network(whole, timesteps, text_only))


def test_ofs_of_one_value_serves_every_sample() -> None:
    config = tiny("1.5_i2v")
    network, (latents, timesteps, conditioning) = network_of(config), inputs(config)

    output = network(latents, timesteps, conditioning)

    each = replace(conditioning, ofs=torch.tensor([2.0, 2.0]))
    other = replace(conditioning, ofs=torch.tensor([2.0, 3.0]))
    torch.testing.assert_close(output, network(latents, timesteps, each))
    changed = network(latents, timesteps, other)
    torch.testing.assert_close(output[0], changed[0])
    assert not torch.allclose(output[1], changed[1])


@pytest.mark.parametrize("kind", ["2b", "5b"])
def test_sizes_beyond_the_configured_grid_work(kind: str) -> None:
    config = tiny(kind)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 7, 16, 12, 18, generator=generator)
    text = torch.randn(1, 5, 24, generator=generator)

    output = network_of(config)(latents, torch.tensor([3]), Conditioning(text))

    assert output.shape == latents.shape
    assert torch.isfinite(output).all()


def test_rope_network_takes_any_number_of_text_tokens() -> None:
    config = tiny("5b")
    latents, timesteps, _ = inputs(config)

    output = network_of(config)(latents, timesteps, Conditioning(torch.ones(2, 9, 24)))

    assert output.shape == latents.shape


def test_norm_epsilons_are_those_the_weights_were_trained_with() -> None:
    network = DiffusionTransformer(tiny("2b"), device="meta")
    block = network.blocks[0]

    assert block.norm_attention.eps == block.norm_mlp.eps == network.norm.eps == 1e-5
    assert block.attention.norm_q.eps == block.attention.norm_k.eps == 1e-6
    assert network.final.norm.eps == 1e-6


def test_swiglu_gates_the_first_projection() -> None:
    config = replace(tiny("5b"), swiglu=True)
    mlp = network_of(config).blocks[0].mlp
    x = torch.randn(1, 3, 32, dtype=torch.float64)

    gated = x @ mlp.gate.weight.T
    inner = gated * gated.sigmoid() * (x @ mlp.up.weight.T + mlp.up.bias)
    torch.testing.assert_close(mlp(x), inner @ mlp.down.weight.T + mlp.down.bias)
    assert mlp.gate.bias is None


def test_rms_norm_replaces_block_and_final_norms_only() -> None:
    network = network_of(replace(tiny("5b"), rms_norm=True))
    block = network.blocks[0]
    x = torch.randn(1, 3, 32, dtype=torch.float64)

    expected = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(block.norm_attention(x), expected)
    assert [n for n, _ in block.norm_mlp.named_parameters()] == ["weight"]
    assert isinstance(network.norm, nn.RMSNorm)
    assert isinstance(block.attention.norm_q, nn.LayerNorm)
    assert isinstance(network.final.norm, nn.LayerNorm)


def test_without_qk_norm_heads_are_not_normed() -> None:
    network = DiffusionTransformer(replace(tiny("5b"), qk_norm=False), device="meta")

    assert not any("norm_q" in name or "norm_k" in name for name, _ in network.named_parameters())


@pytest.mark.parametrize(("segment", "kept"), [(1, 0), (2, 0), (1, 1), (3, 0), (1, 2)])
def test_recomputed_blocks_give_the_same_gradients(segment: int, kept: int) -> None:
    config = tiny("5b")
    recomputing = replace(
        config,
        checkpoint_activations=True,
        checkpoint_num_layers=segment,
        checkpoint_skip_layers=kept,
    )
    plain, network = network_of(config), network_of(recomputing)
    batch = inputs(config)

    expected = gradients(plain, plain(*batch))
    actual = gradients(network, network(*batch))

    assert set(actual) == set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient)


def test_recomputing_runs_each_block_twice_and_only_when_training() -> None:
    network = network_of(replace(tiny("5b"), checkpoint_activations=True))
    runs: list[int] = []
    network.blocks[1].register_forward_pre_hook(lambda *_: runs.append(1))
    batch = inputs(network.config)

    network(*batch).sum().backward()
    assert len(runs) == 2

    network.eval()
    network(*batch).sum().backward()
    assert len(runs) == 3


@pytest.mark.parametrize("recompute", [False, True])
def test_adapters_of_every_block_get_gradients_when_all_else_is_frozen(recompute: bool) -> None:
    config = replace(
        tiny("5b", lora=LoraConfig(rank=2, dropout=0.5)), checkpoint_activations=recompute
    )
    network = network_of(config)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(".lora_" in name)

    torch.manual_seed(3)
    found = gradients(network, network(*inputs(config)))

    assert len(found) == 2 * 4 * 2
    assert all(gradient.abs().max() > 0 for gradient in found.values())
    reference = network_of(replace(config, checkpoint_activations=not recompute))
    torch.manual_seed(3)
    other = gradients(reference, reference(*inputs(config)))
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, other[name])


def test_bf16_network_takes_fp32_inputs_and_answers_in_bf16() -> None:
    config = tiny("5b_i2v")
    low = network_of(config, torch.bfloat16)
    exact = network_of(config, torch.float32)
    exact.load_state_dict(low.state_dict())

    output = low(*inputs(config))

    assert output.dtype == torch.bfloat16
    expected = exact(*inputs(config))
    error = (output.float() - expected).abs().max() / expected.abs().max()
    assert error < 2e-2


def test_a_width_that_the_table_cannot_share_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be divided among time, rows and columns"):
        DiffusionTransformer(replace(tiny("2b"), hidden_size=40), device="meta")
