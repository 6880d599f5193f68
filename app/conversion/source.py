"""Read all weights of a network from any file or folder, and find out which network it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from app.config.schema.model import DiTConfig, LoraConfig
from app.conversion import lora
from app.conversion import sat_files as sat_config
from app.conversion.architecture import (
    SAT_LORA_ALPHA,
    lora_of,
    network_of_metadata,
    num_layers,
    released_network,
)
from app.conversion.diffusers import network_of_config
from app.conversion.misfit import Shapes, compare, error_of
from app.conversion.weights_file import Kind, WeightsFile, open_weights, read_json
from app.errors import ConfigError, WeightsError
from app.models.dit.transformer import DiffusionTransformer

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Beside(NamedTuple):
    """What a YAML file that lies beside weights says."""

    network: DiTConfig | None
    lora: LoraConfig | None


Parse = Callable[[Path], Beside]


@dataclass(frozen=True, slots=True)
class NetworkWeights:
    """A network, or LoRA pairs alone, as read from a file.

    Attributes:
        where: the file or folder.
        kind: its layout.
        tensors: by our names; memory-mapped where nothing had to be put together.
        config: of the network, with `lora` exactly if there are pairs; None for pairs alone whose
            network nobody named.
        lora: rank, alpha and layers of the pairs.
        origin: what told the sizes.
        alpha_origin: what told alpha; "" without pairs.
    """

    where: str
    kind: Kind | str
    tensors: Mapping[str, Tensor]
    config: DiTConfig | None
    lora: LoraConfig | None
    origin: str
    alpha_origin: str = ""

    @property
    def is_pairs(self) -> bool:
        """Whether there are LoRA pairs and nothing else."""
        return lora.are_pairs(self.tensors)


@dataclass(frozen=True, slots=True)
class Told:
    """What the caller says about a file; it wins over what the file says."""

    config: DiTConfig | None = None  # from model files
    alpha: float | None = None  # of LoRA pairs


def read_network(path: Path, told: Told, parse: Parse) -> NetworkWeights:
    """Read a file or folder of any layout (see `open_weights`), strictly.

    Args:
        path: local.
        told: by the caller.
        parse: of a YAML file that lies beside SAT weights.

    Raises:
        InputMissingError: there is nothing to open.
        WeightsError: tensors are missing, unexpected or misshaped; the message names the cause.
        ConfigError: the sizes of the network are not known.
    """
    with open_weights(path) as file:
        tensors = dict(file.our_tensors())
        shapes = shapes_of(tensors)
        beside, place = _beside(file, path, parse)
        config, origin = told.config, "--base"
        if config is None:
            config, origin = beside.network, place
        if config is None:
            config, origin = _found(file, path, shapes)
        if config is None and not lora.are_pairs(tensors):
            raise ConfigError(
                "the sizes of this network are not known: the file does not say them, and its "
                "tensors have not the shapes of a released model",
                where=file.where,
                fix="name its model file: --base configs/<model>.yaml",
            )
        pairs, alpha_origin = _pairs(file, shapes, (config, beside.lora), told.alpha)
        _check_dtypes(tensors, file.where)
        if pairs is not None:
            _check_pairs(shapes, config, file.where)
            if told.config is not None and told.config.lora is None and "nothing" in alpha_origin:
                raise ConfigError(
                    "the file holds LoRA pairs, and the model file has no lora_config, so that "
                    "their alpha is not known",
                    where=file.where,
                    fix="name a *_lora.yaml with --base as well, or give --lora-alpha",
                )
        if config is not None:
            config = replace(config, lora=pairs)
            if not lora.are_pairs(tensors):
                tensors = checked(tensors, config, file.where)
    return NetworkWeights(file.where, file.kind, tensors, config, pairs, origin, alpha_origin)


def _check_dtypes(tensors: Mapping[str, Tensor], where: str) -> None:
    odd = [name for name, tensor in tensors.items() if tensor.dtype not in DTYPES]
    if odd:
        raise WeightsError(
            f"{len(odd)} tensors are neither fp32 nor bf16 nor fp16: {odd[0]} is "
            f"{str(tensors[odd[0]].dtype).removeprefix('torch.')}",
            where=where,
            fix="quantised weights are not read; name the file that they were made from",
        )


def _check_pairs(shapes: Shapes, config: DiTConfig | None, where: str) -> None:
    """Raise WeightsError unless every pair is whole, of one rank, and of the network's width."""
    found = {name: s for name, s in shapes.items() if name.endswith((".lora_a", ".lora_b"))}
    wanted = lora.wanted_pairs(found, config.hidden_size if config is not None else None)
    misfit = compare(wanted, found)
    if misfit:
        error = error_of(misfit, wanted, found, where)
        raise WeightsError(
            error.what.replace("the network", "LoRA pairs on q, k, v and out of each layer"),
            where=error.where,
            fix="all pairs must be whole, of one rank and of the width of the network: name the "
            "model file that belongs to them, or fetch the file again",
        )


def checked(tensors: Mapping[str, Tensor], config: DiTConfig, where: str) -> dict[str, Tensor]:
    """Every tensor of the network; a fixed table that is missing, or of another size, is computed.

    Raises:
        WeightsError: a tensor is missing, unexpected or misshaped.
    """
    network = DiffusionTransformer(config, device="meta")
    wanted = {name: tuple(p.shape) for name, p in network.named_parameters()}
    complete = dict(tensors)
    dtype = next(iter(complete.values())).dtype
    for name, table in network.computed_parameters().items():
        if name not in complete or complete[name].shape != table.shape:
            complete[name] = table.to(dtype)
    shapes = shapes_of(complete)
    misfit = compare(wanted, shapes)
    if misfit:
        raise error_of(misfit, wanted, shapes, where)
    return {name: complete[name] for name in wanted}


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _beside(file: WeightsFile, path: Path, parse: Parse) -> tuple[Beside, str]:
    """What the YAML file beside SAT weights says, and where it lies."""
    if file.kind == "sat":
        for folder in _folders(path):
            described = folder / sat_config.FILE_NAME
            if described.is_file():
                return parse(described), str(described)
    return Beside(None, None), ""


def _found(file: WeightsFile, path: Path, shapes: Shapes) -> tuple[DiTConfig | None, str]:
    """The config and what told it."""
    config = network_of_metadata(file.metadata, file.where)
    if config is not None:
        return config, "the header of the file"
    if file.kind == "diffusers":
        for folder in _folders(path):
            content = read_json(folder / "config.json")
            if content is not None:
                where = str(folder / "config.json")
                return network_of_config(content, where), where
    released = released_network(shapes)
    if released is not None:
        return released[1], f"the shapes of {released[0]}"
    return None, "nothing"


def _folders(path: Path) -> Iterator[Path]:
    """Where a description of the weights may lie: in their folder, or above a tag folder."""
    folder = path if path.is_dir() else path.parent
    if (folder / "transformer").is_dir():
        yield folder / "transformer"
    yield folder
    yield folder.parent


def _pairs(
    file: WeightsFile,
    shapes: Shapes,
    described: tuple[DiTConfig | None, LoraConfig | None],
    alpha: float | None,
) -> tuple[LoraConfig | None, str]:
    """Rank, alpha and layers of the pairs in the file, and what told alpha."""
    config, beside = described
    layers = config.num_layers if config is not None else num_layers(shapes)
    found = lora_of(shapes, SAT_LORA_ALPHA, layers)
    if found is None:
        return None, ""
    if alpha is not None:
        return replace(found, alpha=alpha), "--lora-alpha"
    if file.kind == "peft":
        stored = lora.peft_alpha(file.metadata, found.rank, file.where)
        says = lora.METADATA_KEY in file.metadata
        guess = "nothing: taken as the rank, as diffusers does (--lora-alpha names another)"
        return replace(found, alpha=stored), "the header of the file" if says else guess
    if lora.stored_scale(file.metadata, file.where) is not None:
        stored = float(file.metadata[lora.ALPHA_KEY])
        return replace(found, alpha=stored), "the header of the file"
    told = config.lora if config is not None and config.lora is not None else beside
    if told is not None:
        return replace(found, alpha=told.alpha), "lora_config"
    return found, "nothing: taken as 1, upstream's default (--lora-alpha names another)"
