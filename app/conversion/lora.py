"""LoRA pairs as PEFT, diffusers and tools that read tensors alone take them.

PEFT takes alpha from adapter_config.json, diffusers from the metadata entry
`lora_adapter_metadata` of the safetensors file, others from nowhere: for them the scale is 1. So B
is multiplied by alpha / r and alpha = r is written, unless the caller wants the pairs as they were
trained (docs/decisions/0007-exported-lora.md).

Axes: r rank, i input features, o output features.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from app.config.schema.model import LoraConfig
from app.conversion.rules import Rename, Rule, apply_rules, inverse
from app.errors import WeightsError
from app.models.lora.linear import is_pair, pairs_among

COMPONENT = "transformer"  # the pipeline's part that the pairs belong to
PEFT_WRAPPER = "base_model.model."  # what PEFT's own save_pretrained puts before every name
METADATA_KEY = "lora_adapter_metadata"  # of diffusers
RANK_KEY = "cogvx.lora_rank"  # of our own files
ALPHA_KEY = "cogvx.lora_alpha"
TRAINED_ALPHA_KEY = "cogvx.trained_alpha"  # of files for other tools, whose alpha may be another
REFUSED = ("use_dora", "alpha_pattern", "rank_pattern")  # of PEFT: they change what a pair does
FILE_NAME = "pytorch_lora_weights.safetensors"  # of diffusers
PEFT_FILE = "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"

_TARGETS = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}

# Read from a PEFT file; the way back is `inverse`.
PAIRS: tuple[Rule, ...] = tuple(
    Rename(
        f"{COMPONENT}.transformer_blocks.{{i}}.attn1.{target}.lora_{letter.upper()}.weight",
        f"blocks.{{i}}.attention.{projection}.lora_{letter}",
    )
    for projection, target in _TARGETS.items()
    for letter in "ab"
)


@dataclass(frozen=True)
class PeftFile:
    """What goes into an adapter's files.

    Attributes:
        tensors: of `pytorch_lora_weights.safetensors`: A (r, i) and B (o, r).
        metadata: of the same file.
        config: of `adapter_config.json`.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    config: dict[str, Any]

    @property
    def peft_tensors(self) -> dict[str, Tensor]:
        """Of `adapter_model.safetensors`: the same ones, as PEFT names those of a transformer."""
        return {
            PEFT_WRAPPER + name.removeprefix(f"{COMPONENT}."): tensor
            for name, tensor in self.tensors.items()
        }

    @property
    def peft_metadata(self) -> dict[str, str]:
        """Of `adapter_model.safetensors`, whose rank and alpha are in the config."""
        return {name: text for name, text in self.metadata.items() if name != METADATA_KEY}


def to_peft(
    tensors: Mapping[str, Tensor], lora: LoraConfig, num_layers: int, *, fold_scale: bool = False
) -> PeftFile:
    """The adapter files of a network's LoRA pairs.

    Args:
        tensors: by our names; other tensors than pairs are left out.
        lora: rank, alpha and layers of the run that made them.
        num_layers: of the network.
        fold_scale: multiply B by alpha / r and write alpha = r; otherwise the pairs are as they
            were trained, and tools that ignore alpha take them r / alpha times too strong.

    Raises:
        WeightsError: there are no pairs, or halves of them are missing.
    """
    pairs, trained_alpha = pairs_among(tensors), lora.alpha
    if fold_scale:
        pairs, lora = folded(pairs, lora, float(lora.rank))
    made = dict(apply_rules(pairs, pairs.__getitem__, inverse(PAIRS), "the network's LoRA pairs"))
    adapter = {
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": _target_modules(lora, num_layers),
        "lora_dropout": 0.0,
        "bias": "none",
        "init_lora_weights": True,
    }
    packed = {f"{COMPONENT}.{key}": value for key, value in adapter.items()}
    metadata = {
        "format": "pt",
        METADATA_KEY: json.dumps(packed, indent=2, sort_keys=True),
        TRAINED_ALPHA_KEY: str(trained_alpha),
    }
    kind = {"peft_type": "LORA", "task_type": None, "inference_mode": True}
    return PeftFile(made, metadata, adapter | kind)


def folded(
    pairs: Mapping[str, Tensor], lora: LoraConfig, alpha: float
) -> tuple[dict[str, Tensor], LoraConfig]:
    """The same adapter with another alpha: B is multiplied by what alpha no longer does.

    Args:
        pairs: by our names.
        lora: of them.
        alpha: rank for tools that take the scale as 1; 1 for upstream's model files.
    """
    factor = lora.alpha / alpha
    changed = {
        name: (t.float() * factor).to(t.dtype) if name.endswith(".lora_b") else t
        for name, t in pairs.items()
    }
    return changed, replace(lora, alpha=alpha)


def from_peft(
    names: Iterable[str], read: Callable[[str], Tensor], where: str
) -> Iterator[tuple[str, Tensor]]:
    """Our names and tensors of a PEFT file.

    Its names begin with the pipeline's part (diffusers), with PEFT's wrapper, or with nothing.

    Raises:
        WeightsError: it holds something else than pairs on the attention projections.
    """
    stored = {_of_pipeline(name): name for name in names}
    yield from apply_rules(stored, lambda name: read(stored[name]), PAIRS, where)


def _of_pipeline(name: str) -> str:
    bare = name.removeprefix(PEFT_WRAPPER)
    return bare if bare.startswith(f"{COMPONENT}.") else f"{COMPONENT}.{bare}"


def is_pair_name(name: str) -> bool:
    """Whether a tensor's name is one of PEFT's."""
    return ".lora_A." in name or ".lora_B." in name


def wanted_pairs(shapes: Mapping[str, tuple[int, ...]], hidden: int | None) -> dict[str, Any]:
    """Shapes that the pairs of these layers must have: four whole pairs each, of one rank.

    Args:
        shapes: by our names; other tensors than pairs are left aside.
        hidden: width of the network; None: that of the first pair.
    """
    pairs = pairs_among(shapes)
    firsts = [shape for name, shape in pairs.items() if name.endswith(".lora_a")]
    rank, width = firsts[0] if firsts and len(firsts[0]) == 2 else (0, 0)
    wanted: dict[str, Any] = {}
    for layer in sorted({name.rpartition(".attention.")[0] for name in pairs}):
        for projection in _TARGETS:
            stem = f"{layer}.attention.{projection}"
            wanted[f"{stem}.lora_a"] = (rank, hidden or width)
            wanted[f"{stem}.lora_b"] = (hidden or width, rank)
    return wanted


def are_pairs(names: Iterable[str]) -> bool:
    """Whether tensors by our names are LoRA pairs and nothing else."""
    return all(is_pair(name) for name in names)


def lora_metadata(lora: LoraConfig) -> dict[str, str]:
    """Rank and alpha for the header of our own files."""
    return {RANK_KEY: str(lora.rank), ALPHA_KEY: str(lora.alpha)}


def stored_scale(metadata: Mapping[str, str], where: str) -> float | None:
    """alpha / r of one of our own files; None where it says nothing.

    Raises:
        WeightsError: the entries do not parse.
    """
    if RANK_KEY not in metadata:
        return None
    try:
        return float(metadata[ALPHA_KEY]) / int(metadata[RANK_KEY])
    except (ValueError, KeyError, ZeroDivisionError) as cause:
        raise WeightsError(
            f"{RANK_KEY} and {ALPHA_KEY} do not parse ({cause!r})",
            where=where,
            fix="export the file again",
        ) from cause


def trained_alpha(metadata: Mapping[str, str], where: str) -> float | None:
    """Alpha of the training that made an exported file; None where it says nothing.

    Raises:
        WeightsError: the entry does not parse.
    """
    text = metadata.get(TRAINED_ALPHA_KEY)
    if text is None:
        return None
    try:
        alpha = float(text)
        if not 0 < alpha < math.inf:
            raise ValueError(text)
    except ValueError as cause:
        raise WeightsError(
            f"{TRAINED_ALPHA_KEY} does not parse ({cause!r})",
            where=where,
            fix="export the adapter again",
        ) from cause
    return alpha


def peft_scale(metadata: Mapping[str, str], rank: int, where: str) -> float:
    """alpha / r of a PEFT file (see `peft_alpha`)."""
    return peft_alpha(metadata, rank, where) / rank


def peft_alpha(metadata: Mapping[str, str], rank: int, where: str) -> float:
    """Alpha of a PEFT file; r where the file says nothing (as diffusers takes it).

    Raises:
        WeightsError: the metadata do not parse, or name another rank than the tensors have.
    """
    text = metadata.get(METADATA_KEY)
    if text is None:
        return float(rank)
    try:
        entries: dict[str, Any] = json.loads(text)
        stored_rank = int(entries[f"{COMPONENT}.r"])
        alpha = float(entries[f"{COMPONENT}.lora_alpha"])
        odd = [key for key in REFUSED if entries.get(f"{COMPONENT}.{key}")]
    except (ValueError, KeyError, TypeError) as cause:
        raise WeightsError(
            f"{METADATA_KEY} does not parse ({cause!r})",
            where=where,
            fix="export the adapter again, or remove the metadata if the scale is 1",
        ) from cause
    if stored_rank != rank:
        raise WeightsError(
            f"{METADATA_KEY} says rank {stored_rank}, the tensors have rank {rank}",
            where=where,
            fix="export the adapter again",
        )
    if odd:
        raise WeightsError(
            f"{METADATA_KEY} sets {', '.join(odd)}, which no network of ours has",
            where=where,
            fix="train a plain LoRA, or merge this one with PEFT first",
        )
    # Rank-stabilised LoRA scales by alpha / sqrt(r).
    return alpha * math.sqrt(rank) if entries.get(f"{COMPONENT}.use_rslora") else alpha


def _target_modules(lora: LoraConfig, num_layers: int) -> list[str]:
    """Short names where all layers are meant, whole names where only some are."""
    short = sorted(_TARGETS.values())
    if lora.layer_range is None or set(lora.layer_range) == set(range(num_layers)):
        return short
    layers = sorted(set(lora.layer_range))
    return [f"transformer_blocks.{layer}.attn1.{name}" for layer in layers for name in short]
