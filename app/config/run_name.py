"""The run id of who names none: which model is trained, and how.

Stock recipes all carry the same name of an experiment, so it cannot tell two runs apart.
"""

from __future__ import annotations

from app.config.schema.model import DiTConfig, ModelConfig

STOCK_NAMES = ("MyModel", "lora-disney")  # upstream's default, and what stands in its sft.yaml
SIZES = {30: "2b", 42: "5b"}  # by the number of layers


def run_name(model: ModelConfig) -> str:
    """Such as `cogvideox-5b-lora`, `cogvideox1.5-5b-i2v-full`."""
    network = model.network.params
    image = "-i2v" if network.in_channels > network.out_channels else ""
    how = "full" if network.lora is None else "lora"
    return f"{_version(network)}-{_size(network)}{image}-{how}"


def _version(network: DiTConfig) -> str:
    return "cogvideox1.5" if network.patch.frames > 1 else "cogvideox"


def _size(network: DiTConfig) -> str:
    size = SIZES.get(network.num_layers)
    return size or f"{network.num_layers}x{network.hidden_size}"
