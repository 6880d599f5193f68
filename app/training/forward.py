"""The step functions that users of the original know, used by our own loop.

Source of the contract: sat/train_video.py, forward_step, forward_step_eval, broad_cast_batch.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from app.distributed.rank_group import ALONE, RankGroup
from app.distributed.sharing import of_first_rank
from app.telemetry.timing import PartTimes
from app.training.step import DiffusionModel

VIEWS_AXES = 6  # (B, views, T, 3, H, W)


def forward_step(
    data_iterator: Iterator[Mapping[str, Any]],
    model: DiffusionModel,
    args: Namespace,
    timers: PartTimes,
    data_class: type | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """One micro-step: the next batch and its loss.

    Args:
        data_iterator: yields batches, see app.data.batch.
        model: what `training_main` built.
        args: `iteration`, the number of the current step, is read.
        timers: `timers(name).start()` and `.stop()`.
        data_class: accepted for the contract, ignored.

    Returns:
        The loss, and metrics by name for the log.
    """
    group = sharing(args)
    batch = next_batch(data_iterator, args, timers) if group.rank == 0 else {}
    return model.shared_step(broad_cast_batch(batch, group))


def forward_step_eval(
    data_iterator: Iterator[Mapping[str, Any]],
    model: DiffusionModel,
    args: Namespace,
    timers: PartTimes,
    only_log_video_latents: bool = False,
    data_class: type | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """One validation micro-step: as `forward_step`, without gradients, and videos to look at.

    Videos are made when `args.log_image` is set and `model.videos_to` takes them; every rank
    makes those of its own batch, so no rank waits for another.
    """
    group = sharing(args)
    own = flat_views(next_batch(data_iterator, args, timers)) if group.rank == 0 else {}
    batch = broad_cast_batch(own, group)
    with torch.no_grad():
        if getattr(args, "log_image", True) and model.videos_to is not None:
            videos = model.log_video(batch, only_log_video_latents=only_log_video_latents)
            model.videos_to(videos, batch)
        loss, metrics = model.shared_step(batch)
    return loss, {name: value.float() for name, value in metrics.items()}


def sharing(args: Namespace) -> RankGroup:
    """The ranks that share our copy of the network; the first of them reads the data for all."""
    groups = getattr(args, "groups", None)
    return groups.tensor if groups is not None else ALONE


def broad_cast_batch(batch: dict[str, Any], group: RankGroup = ALONE) -> dict[str, Any]:
    """The batch of the first rank of a model-parallel group, on every rank of it.

    Args:
        batch: tensors and plain values by name; ignored on the other ranks.
        group: the ranks that share the network; with one rank the batch is returned unchanged.
    """
    return batch if group.size == 1 else of_first_rank(batch, group)


def next_batch(
    data_iterator: Iterator[Mapping[str, Any]], args: Namespace, timers: Callable[[str], Any]
) -> dict[str, Any]:
    """The next batch with `global_step`; its time is charged to "data loader"."""
    timers("data loader").start()
    batch = dict(next(data_iterator))
    timers("data loader").stop()
    batch["global_step"] = getattr(args, "iteration", 0)
    return batch


def flat_views(batch: dict[str, Any]) -> dict[str, Any]:
    """Clips with several views, (B, views, T, 3, H, W), as B * views clips.

    Captions are taken from `txt[view][sample]`, as upstream's datasets of views give them.
    """
    video = batch.get("mp4")
    if not isinstance(video, Tensor) or video.ndim != VIEWS_AXES:
        return batch
    count, views = video.shape[:2]
    captions = [batch["txt"][view][sample] for sample in range(count) for view in range(views)]
    flat = {**batch, "mp4": video.flatten(0, 1), "txt": captions}
    if "positions" in batch:
        flat["positions"] = [
            position * views + view for position in batch["positions"] for view in range(views)
        ]
    return flat
