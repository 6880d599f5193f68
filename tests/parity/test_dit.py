"""The diffusion transformer against recorded outputs, intermediates and gradients."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from app.conversion.sat import from_sat, to_sat
from app.models.conditioning import Conditioning
from app.models.dit.rotary import rotation_for
from app.models.dit.tokens import PatchGrid
from app.models.dit.transformer import DiffusionTransformer
from app.models.lora.merge import merged_tensors
from tests.parity.golden import RUNNING, Case, cases, name_of, placed, weight
from tests.parity.recorded_network import config_of

ITEMS = ("01", "02", "03", "04", "05")


def network_of(case: Case) -> DiffusionTransformer:
    """The network with the recorded weights, by the layout that the file has them in."""
    network = DiffusionTransformer(config_of(case.json["network_config"], case))
    recorded = recorded_weights(case, network)
    ours = dict(from_sat(recorded, recorded.__getitem__, case.path.name))
    missing, unexpected = network.load_state_dict(ours, strict=False)
    assert not unexpected
    assert set(missing) <= computed_by(network)
    return placed(network)


def recorded_weights(case: Case, network: DiffusionTransformer) -> dict[str, Tensor]:
    """Stored tensors where the case has them, else the formula on our own names and shapes."""
    formula = {n: t for n, t in network.state_dict().items() if n not in computed_by(network)}
    shapes = {key: tuple(t.shape) for key, t in to_sat(formula, network.config.patch).items()}
    shapes |= {name.removeprefix("state_dict/"): () for name in case.names("state_dict/")}
    return case.weights(shapes)


def computed_by(network: DiffusionTransformer) -> set[str]:
    return set(network.computed_parameters())


def run_inputs(case: Case, run: str) -> tuple[Tensor, Tensor, Conditioning]:
    def optional(name: str) -> Tensor | None:
        return placed(case.tensor(f"{run}/{name}")) if case.has(f"{run}/{name}") else None

    conditioning = Conditioning(
        text=placed(case.tensor(f"{run}/context")),
        image=optional("concat_images"),
        ofs=optional("ofs"),
    )
    return placed(case.tensor(f"{run}/x")), placed(case.tensor(f"{run}/timesteps")), conditioning


class Intermediates:
    """Forward hooks that keep what the recording calls `inter/*` (first sample only)."""

    def __init__(self, network: DiffusionTransformer) -> None:
        self.seen: dict[str, Tensor] = {}
        blocks = network.blocks
        self._input_of(blocks[0], "after_embed")
        self._output_of(network.time_embed, "time_embed")
        if network.ofs_embed is not None:
            self._output_of(network.ofs_embed, "ofs_embed")
        self._output_of(blocks[0].attention, "block0_attn_out")
        self._output_of(blocks[0], "block1_in")
        self._input_of(network.norm, "last_block_out")

    def _input_of(self, module: torch.nn.Module, name: str) -> None:
        def keep(_: Any, inputs: tuple[Tensor, ...]) -> None:
            self.seen[name] = inputs[0][:1].detach()

        module.register_forward_pre_hook(keep)

    def _output_of(self, module: torch.nn.Module, name: str) -> None:
        def keep(_: Any, __: Any, output: Tensor) -> None:
            self.seen[name] = output[:1].detach()

        module.register_forward_hook(keep)


def compare_gradients(case: Case, run: str, network: DiffusionTransformer, x: Tensor) -> None:
    """Gradients of mean(output ** 2), by SAT names and in the file's patch layout."""
    case.assert_close(x.grad, case.tensor(f"{run}/grad/x"), "grad", f"{run} grad x")
    patch = network.config.patch
    with_gradient = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
    zeros = {n: torch.zeros_like(p) for n, p in network.named_parameters()}
    ours = to_sat(zeros | with_gradient, patch)
    for key, expected in case.tensors(f"{run}/grad/").items():
        if key == "x":
            continue
        actual = ours[key].reshape(expected.shape)  # the patch weight may be 4-D in the file
        if case.noise_only(key):
            assert actual.abs().max() < 1e-7 * RUNNING.slack, f"{key} is zero in exact arithmetic"
        else:
            case.assert_close(actual, expected, "grad", f"{run} grad {key}")
    if "grad_norm_all" in case.json:
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in with_gradient.values()))
        assert norm == pytest.approx(case.json["grad_norm_all"], rel=1e-4)


@pytest.mark.parametrize("case", cases(*ITEMS), ids=name_of)
def test_network_gives_the_recorded_numbers(case: Case) -> None:
    with case:
        network = network_of(case)
        for run in case.json["runs"]:
            x, timesteps, conditioning = run_inputs(case, run)
            with_gradients = bool(case.names(f"{run}/grad/"))
            x.requires_grad_(with_gradients)
            inter = Intermediates(network)

            output = network(x, timesteps, conditioning)

            case.assert_close(output, case.tensor(f"{run}/output"), "output", f"{run} output")
            for name, expected in case.tensors(f"{run}/inter/").items():
                case.assert_close(inter.seen[name], expected, "inter", f"{run} {name}")
            if with_gradients:
                output.square().mean().backward()
                compare_gradients(case, run, network, x)
        check_names(case, network)
        check_stored_weights(case, network)
        if network.config.lora is not None:
            lora = network.config.lora
            assert lora.alpha / lora.rank == case.json["lora"]["scaling"]
        compare_merged(case, network)


def check_names(case: Case, network: DiffusionTransformer) -> None:
    """Keys of the recorded state dict, and which of them can train, equal ours."""
    unused = ("position_embeddings.weight", "freqs_sin", "freqs_cos")  # not created by us
    parameters = dict(network.named_parameters())
    keys = to_sat({name: p.detach() for name, p in parameters.items()}, network.config.patch)
    assert set(keys) == {key for key in case.json["state_keys"] if not key.endswith(unused)}
    frozen = {name: torch.full_like(p, not p.requires_grad) for name, p in parameters.items()}
    ours_train = {k: not t.any() for k, t in to_sat(frozen, network.config.patch).items()}
    recorded = case.json["param_requires_grad"]
    recorded = {key: value for key, value in recorded.items() if not key.endswith(unused)}
    assert {key: bool(value) for key, value in ours_train.items()} == recorded


def check_stored_weights(case: Case, network: DiffusionTransformer) -> None:
    """Stored weights follow the formula, stored tables are the ones that we compute."""
    ours = dict(network.named_parameters())
    for name, computed in network.computed_parameters().items():
        torch.testing.assert_close(ours[name].detach().cpu(), computed.cpu(), rtol=0, atol=1e-7)
    rotation = rotation_for(PatchGrid(*network.config.grid), network.config.head_dim, torch.ones(1))
    for key, stored in case.tensors("state_dict/").items():
        if key.endswith(("freqs_cos", "freqs_sin")):
            table = rotation.cos if key.endswith("freqs_cos") else rotation.sin
            torch.testing.assert_close(stored, table, rtol=0, atol=1e-6)
        elif not (key.endswith("pos_embedding") and network.computed_parameters()):
            flat = (stored.shape[0], stored[0].numel()) if stored.ndim == 4 else stored.shape
            expected = weight(case.json["weights_salt"], key, tuple(flat))
            assert torch.equal(stored, expected.reshape(stored.shape)), key


def compare_merged(case: Case, network: DiffusionTransformer) -> None:
    if not case.has("merged/output"):
        return
    x, timesteps, conditioning = run_inputs(case, next(iter(case.json["runs"])))
    lora = network.config.lora
    assert lora is not None
    plain = placed(DiffusionTransformer(replace(network.config, lora=None)))
    plain.load_state_dict(merged_tensors(network.state_dict(), lora.alpha / lora.rank))
    merged = to_sat(plain.state_dict(), plain.config.patch)

    output = plain(x, timesteps, conditioning)

    case.assert_close(output, case.tensor("merged/output"), "output", "merged output")
    layer = "model.diffusion_model.transformer.layers.0.attention."
    for short, key in (("qkv", "query_key_value"), ("dense", "dense")):
        expected = case.tensor(f"merged/layer0_{short}_weight")
        case.assert_close(merged[f"{layer}{key}.weight"], expected, "output", f"merged {short}")
