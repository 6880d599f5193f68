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
from app.conversion.architecture import (
    lora_of,
    network_of_metadata,
    released_network,
)
from app.conversion.diffusers import network_of_config
from app.conversion.misfit import Shapes, check_fit, num_layers, shapes_of
from app.conversion.sat_files import FILE_NAME as SIDECAR_FILE
from app.conversion.weights_file import Kind, WeightsFile, open_weights, read_json
from app.errors import ConfigError, WeightsError
from app.models.dit.transformer import DiffusionTransformer
from app.models.lora.linear import pairs_among

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class SidecarConfig(NamedTuple):
    """What a YAML file in the folder of SAT weights says."""

    network: DiTConfig | None
    lora: LoraConfig | None


ReadSidecar = Callable[[Path], SidecarConfig]


@dataclass(frozen=True, slots=True)
class NetworkWeights:
    """Every tensor of a network, as read from a file.

    Attributes:
        where: the file or folder.
        kind: its layout.
        tensors: by our names; memory-mapped where nothing had to be put together.
        network: its config, with `lora` exactly if there are pairs.
        origin: where the sizes were found.
        alpha_origin: where alpha was found; "" without pairs.
    """

    where: str
    kind: Kind | str
    tensors: Mapping[str, Tensor]
    network: DiTConfig
    origin: str
    alpha_origin: str = ""

    @property
    def lora(self) -> LoraConfig | None:
        """Of the pairs among the tensors."""
        return self.network.lora


@dataclass(frozen=True, slots=True)
class LoraWeights:
    """LoRA pairs alone, as read from a file.

    Attributes:
        where: the file or folder.
        kind: its layout.
        tensors: by our names.
        lora: rank, alpha and layers.
        network: that they are for; None where neither the file nor the caller says it.
        origin: where the sizes of the network were found.
        alpha_origin: where alpha was found.
        trained_alpha: of the training, where an export may have moved its scale into B; None: that
            of `lora`.
    """

    where: str
    kind: Kind | str
    tensors: Mapping[str, Tensor]
    lora: LoraConfig
    network: DiTConfig | None
    origin: str
    alpha_origin: str
    trained_alpha: float | None = None


@dataclass(frozen=True, slots=True)
class WeightsOverrides:
    """What the caller says about a file; it wins over what the file says."""

    config: DiTConfig | None = None  # from model files
    alpha: float | None = None  # of LoRA pairs


def read_network_weights(
    path: Path, overrides: WeightsOverrides, read_sidecar: ReadSidecar
) -> NetworkWeights | LoraWeights:
    """Read a file or folder of any layout (see `open_weights`), strictly.

    Args:
        path: local.
        overrides: by the caller.
        read_sidecar: reads a YAML file in the folder of SAT weights.

    Raises:
        InputMissingError: there is nothing to open.
        WeightsError: tensors are missing, unexpected or misshaped; the message names the cause.
        ConfigError: the sizes of the network are not known.
    """
    with open_weights(path) as file:
        tensors = dict(file.our_tensors())
        shapes = shapes_of(tensors)
        sidecar, place = _sidecar(file, path, read_sidecar)
        config, origin = overrides.config, "--base"
        if config is None:
            config, origin = sidecar.network, place
        if config is None:
            config, origin = _found(file, path, shapes)
        found, alpha_origin = _pairs(file, shapes, (config, sidecar.lora), overrides.alpha)
        _check_dtypes(tensors, file.where)
        if found is not None:
            _check_pairs(shapes, config, file.where)
            base = overrides.config
            if base is not None and base.lora is None and "nothing" in alpha_origin:
                raise ConfigError(
                    "the file holds LoRA pairs, and the model file has no lora_config, so that "
                    "their alpha is not known",
                    where=file.where,
                    fix="name a *_lora.yaml with --base as well, or give --lora-alpha",
                )
        if found is not None and lora.are_pairs(tensors):
            network = None if config is None else replace(config, lora=found)
            known = (found, network, origin, alpha_origin)
            trained = lora.trained_alpha(file.metadata, file.where)
            return LoraWeights(file.where, file.kind, tensors, *known, trained)
        if config is None:
            raise ConfigError(
                "the sizes of this network are not known: the file does not say them, and its "
                "tensors do not have the shapes of a released model",
                where=file.where,
                fix="name its model file: --base configs/<model>.yaml",
            )
        config = replace(config, lora=found)
        tensors = checked(tensors, config, file.where)
        return NetworkWeights(file.where, file.kind, tensors, config, origin, alpha_origin)


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
    wanted = lora.wanted_pairs(shapes, config.hidden_size if config is not None else None)
    what = "LoRA pairs on q, k, v and out of each layer"
    fix = (
        "all pairs must be whole, of one rank and of the width of the network: name the model "
        "file that belongs to them, or fetch the file again"
    )
    check_fit(wanted, pairs_among(shapes), where, what=what, fix=fix)


def checked(tensors: Mapping[str, Tensor], config: DiTConfig, where: str) -> dict[str, Tensor]:
    """Every tensor of the network; a fixed table that is missing, or of another size, is computed.

    Raises:
        WeightsError: a tensor is missing, unexpected or misshaped.
    """
    network = DiffusionTransformer(config, device="meta")
    wanted = shapes_of(dict(network.named_parameters()))
    complete = dict(tensors)
    dtype = next(iter(complete.values())).dtype
    for name, table in network.computed_parameters().items():
        if name not in complete or complete[name].shape != table.shape:
            complete[name] = table.to(dtype)
    check_fit(wanted, shapes_of(complete), where)
    return {name: complete[name] for name in wanted}


def _sidecar(file: WeightsFile, path: Path, read_sidecar: ReadSidecar) -> tuple[SidecarConfig, str]:
    """What the YAML file in the folder of SAT weights says, and its path."""
    if file.kind == "sat":
        for folder in _folders(path):
            described = folder / SIDECAR_FILE
            if described.is_file():
                return read_sidecar(described), str(described)
    return SidecarConfig(None, None), ""


def _found(file: WeightsFile, path: Path, shapes: Shapes) -> tuple[DiTConfig | None, str]:
    """The config and where it was found."""
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
    """Where a description of the weights may be: in their folder, or above a tag folder."""
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
    """Rank, alpha and layers of the pairs in the file, and where alpha was found."""
    config, sidecar = described
    layers = config.num_layers if config is not None else num_layers(shapes)
    found = lora_of(shapes, layers)
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
    named = config.lora if config is not None and config.lora is not None else sidecar
    if named is not None:
        return replace(found, alpha=named.alpha), "lora_config"
    return found, "nothing: taken as 1, upstream's default (--lora-alpha names another)"
