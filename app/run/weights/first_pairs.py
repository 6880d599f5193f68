"""The LoRA pairs that a new run starts with (`lora_from`)."""

from __future__ import annotations

import logging
import math
from functools import partial
from pathlib import Path

import torch

from app.checkpoint.tensor_file import write_tensors
from app.config.schema.model import DiTConfig, LoraConfig
from app.conversion import lora
from app.conversion.loading import load_lora_weights
from app.conversion.source import LoraWeights, WeightsOverrides, read_network_weights
from app.errors import WeightsError
from app.models.dit.transformer import DiffusionTransformer
from app.models.lora.linear import pairs_among
from app.run.weights.description import read_sidecar
from app.run.weights.source import SourceRequest, open_weights_source

log = logging.getLogger(__name__)

FILE_NAME = "first_pairs.safetensors"


def load_first_pairs(
    network: DiffusionTransformer, url: str, cache_dir: Path, scratch: Path
) -> None:
    """Fill the pairs of a network with those that another training made, as it left them.

    All ranks call it together; rank 0 reads for all of them.

    Args:
        network: with its base weights.
        url: a run, a checkpoint of one, or an exported LoRA, of ours, diffusers or PEFT.
        cache_dir: for remote files.
        scratch: a folder of this process.

    Raises:
        InputMissingError: there is nothing at the URL.
        WeightsError: rank, alpha or layers are not those of the network.
    """
    config = network.config
    report = load_lora_weights(
        network, partial(_as_one_file, url, config, cache_dir, scratch / FILE_NAME)
    )
    log.info("LoRA loaded", extra={"path": url, "tensors": report.num_tensors})


def read_pairs(url: str, config: DiTConfig, cache_dir: Path) -> LoraWeights:
    """The pairs at a URL as they were trained: where an export folded their scale, it is undone.

    Args:
        url: see `load_first_pairs`.
        config: of the network that they are for.
        cache_dir: for remote files.

    Raises:
        InputMissingError: there is nothing at the URL.
        WeightsError: it holds no pairs.
    """
    # Rank and alpha of PEFT's file are in the config beside it.
    folder, slash, name = url.rpartition("/")
    place = open_weights_source(
        folder if slash and name == lora.PEFT_FILE else url,
        "transformer",
        SourceRequest(),
        cache_dir,
    )
    if place.path is None:
        read = place.network(pairs_only=True)
    else:
        read = read_network_weights(place.path, WeightsOverrides(config), read_sidecar)
    if read.lora is None:
        raise WeightsError(
            "there are no LoRA pairs here",
            where=url,
            fix="give the whole network as `load`, or name a run that trained a LoRA",
        )
    if not isinstance(read, LoraWeights):
        pairs = pairs_among(read.tensors)
        known = (read.lora, read.network, read.origin, read.alpha_origin)
        return LoraWeights(read.where, read.kind, pairs, *known)
    if read.trained_alpha is None:
        return read
    tensors, trained = lora.folded(read.tensors, read.lora, read.trained_alpha)
    return LoraWeights(
        read.where, read.kind, tensors, trained, read.network, read.origin, read.alpha_origin
    )


def _as_one_file(url: str, config: DiTConfig, cache_dir: Path, path: Path) -> Path:
    """The pairs as a file of ours, once rank and alpha are those of the network."""
    read = read_pairs(url, config, cache_dir)
    _check(read, config.lora, url)
    tensors = {name: tensor.to(torch.float32) for name, tensor in read.tensors.items()}
    write_tensors(path, tensors, {"format": "pt", **lora.lora_metadata(read.lora)})
    return path


def _check(read: LoraWeights, wanted: LoraConfig | None, url: str) -> None:
    found = read.lora
    if wanted is None:
        raise WeightsError(
            "these are LoRA pairs, and the network of the configuration has none",
            where=url,
            fix="add lora_config to the model file (a *_lora.yaml)",
        )
    if found.rank == wanted.rank and math.isclose(found.alpha, wanted.alpha):
        return
    guessed = f" (alpha: {read.alpha_origin})" if "nothing" in read.alpha_origin else ""
    raise WeightsError(
        f"the pairs have rank {found.rank} and alpha {found.alpha:g}{guessed}, the configuration "
        f"says r {wanted.rank} and lora_alpha {wanted.alpha:g}",
        where=url,
        fix=f"set lora_config.params to r: {found.rank} and lora_alpha: {found.alpha:g}",
    )
