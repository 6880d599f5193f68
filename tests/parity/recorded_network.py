"""The network of a recorded loss or sampler case, with the weights that the case names."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from app.config.schema.model import DiTConfig
from app.config.sections.parse import parse_network
from app.conversion.sat import from_sat, to_sat
from app.models.dit.transformer import DiffusionTransformer
from app.registry import TARGETS
from tests.parity.golden import Case, placed


def config_of(node: object, case: Case) -> DiTConfig:
    """The network's config as `compat: sat` makes it."""
    config = parse_network(node, case.path.name, TARGETS).params
    return replace(config, position=replace(config.position, first_rows=True))


def network_of(case: Case) -> DiffusionTransformer:
    """Built from `model_config.network_config`; a computed position table stays as computed."""
    node = case.json["model_config"]["network_config"]
    network = DiffusionTransformer(config_of(node, case))
    computed = network.computed_parameters()
    shapes = {
        key: tuple(value.shape)
        for key, value in to_sat(network.state_dict(), network.config.patch).items()
        if not (computed and key.endswith("pos_embedding"))
    }
    weights = case.weights(shapes)
    ours = dict(from_sat(weights, weights.__getitem__, case.path.name))
    missing, unexpected = network.load_state_dict(ours, strict=False)
    assert not unexpected
    assert set(missing) <= set(computed)
    return placed(network)


def gradients_of(network: DiffusionTransformer) -> dict[str, Tensor]:
    """Gradients by upstream's names; zeros where a parameter has none."""
    gradients = {
        name: p.new_zeros(p.shape) if p.grad is None else p.grad
        for name, p in network.named_parameters()
    }
    return to_sat(gradients, network.config.patch)
