"""The run's share of its data, and what a clip costs the network."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from app.config.schema.data import Bucket, DataConfig, split_shares
from app.config.schema.model import DiTConfig, ModelConfig
from app.data.order.buckets import clip_cost

UNKNOWN_FPS = 8.0  # of sampled videos, where the dataset does not say: upstream's sampling_fps


def split_of(data: DataConfig) -> tuple[float, float, float]:
    """Shares of `train_data` that train, validate and are held out for a test."""
    return split_shares(data.split, has_valid=bool(data.valid), has_test=bool(data.test))


def clip_cost_in(model: ModelConfig) -> Callable[[Bucket], float] | None:
    """Modelled time of a clip in the network; None for a registered network."""
    network = model.network.params
    if not isinstance(network, DiTConfig):
        return None
    return partial(clip_cost, network=network, text_tokens=model.conditioner.text.max_length)


def frames_per_second(data: DataConfig) -> float:
    """Of the clips; a registered class may have it among its parameters."""
    if isinstance(data.params, dict):
        return float(str(data.params.get("fps", UNKNOWN_FPS)))
    return data.params.fps
