"""The text conditioner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class T5Config:
    """`emb_models[0].params` (FrozenT5Embedder)."""

    model_dir: str  # folder with tokenizer and encoder, local or s3://
    max_length: int = 77  # tokens; captions are padded and cut to it


@dataclass(frozen=True, kw_only=True, slots=True)
class ConditionerConfig:
    """`conditioner_config.params` (GeneralConditioner with one text embedder)."""

    target: str  # registry name of the embedder
    implementation: str  # "app.models.text.t5:T5TextEncoder", or a registered class
    text: T5Config
    ucg_rate: float = 0.0  # probability that a caption's embedding becomes zeros in training
    input_key: str = "txt"
    params: Mapping[str, object] = field(default_factory=dict)  # of a registered class, unchecked
