"""Validation: the loss at fixed noise and timesteps over all ranks, and sample videos.

The validation samples are the first ones of `valid_data`, and they and their noise are the same at
every step, in every run and at every world size, so losses can be compared.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.checkpoint.layout import samples_folder, samples_index_key
from app.checkpoint.tensor_file import write_tensors
from app.config.schema.training import EvaluationConfig
from app.data.batch import Collate
from app.data.sources.protocols import Source
from app.distributed.rank_group import ALONE, RankGroup, world
from app.distributed.seeding import KeyedDraws
from app.evaluation.grid import tiled
from app.evaluation.metrics import VALIDATION_SEED, LossSums, ValidationBatch, validation_loss
from app.evaluation.sampling import LatentShape, SamplingJob, sample_latents, to_unit_range
from app.evaluation.video_file import to_uint8, write_video
from app.models.conditioning import Conditioning
from app.storage.objects import Storage
from app.training.engine import Engine
from app.training.forward import broad_cast_batch, flat_views
from app.training.loop import LoopState
from app.training.step import DiffusionModel, Encoded

log = logging.getLogger(__name__)

MOST_VIDEOS = 8  # per validation, as upstream


@dataclass(frozen=True, slots=True)
class Sampled:
    """One finished sample of this rank."""

    position: int
    caption: str
    video: Tensor | None  # (T, 3, H, W) uint8; None when only latents are wanted
    latents: Tensor  # (t, C, h, w) as the VAE knows them


@dataclass(slots=True)
class Evaluator:
    """Validates a model in training; every rank calls it at the same step.

    Attributes:
        copies: the ranks that divide the samples: one of each copy of the network.
        fps: of the videos.
        sharers: the ranks that share this copy; the first of them reads and writes for all.
    """

    config: EvaluationConfig
    model: DiffusionModel
    engine: Engine
    source: Source
    collate: Collate
    storage: Storage
    copies: RankGroup
    fps: float
    sharers: RankGroup = ALONE

    def __call__(self, state: LoopState) -> dict[str, float]:
        """Validation loss by name; videos go to the run's folder."""
        return self._validated(state.step, with_videos=self.config.log_videos)

    def baseline(self) -> dict[str, float]:
        """The loss before the first step, without videos."""
        return self._validated(0, with_videos=False)

    def _validated(self, step: int, *, with_videos: bool) -> dict[str, float]:
        self.engine.eval()
        losses = self.loss()
        log.info("validation", extra={"steps_done": step, **losses})
        if with_videos:
            self.sample(step)
        self.model.offload()
        self.engine.train()
        return losses

    # loss

    @torch.no_grad()
    def loss(self) -> dict[str, float]:
        """`valid_loss`, and the loss at each fixed timestep, over all ranks."""
        sums = validation_loss(self.model.loss, self.model.network, self.batches())
        total = world().sum(sums.to_tensor()).cpu()
        found = LossSums.from_tensor(total)
        each = {f"valid_loss_{i}": value for i, value in enumerate(found.means)}
        return {"valid_loss": found.mean, **each}

    def batches(self) -> Iterator[ValidationBatch]:
        """This rank's share, padded so that all ranks make the same number of calls."""
        size, copies = self.config.batch_size, self.copies
        count = self._sample_count()
        rounds = -(-count // (size * copies.size))
        for turn in range(rounds):
            first = (turn * copies.size + copies.rank) * size
            wanted = range(first, first + size)
            positions = [min(position, count - 1) for position in wanted]
            encoded, _, encoded_positions = self.encoded(positions)
            views = len(encoded_positions) // size
            yield ValidationBatch(
                latents=encoded.latents,
                conditioning=encoded.conditioning,
                positions=encoded_positions,
                counted=[position < count for position in wanted for _ in range(views)],
            )

    def _sample_count(self) -> int:
        available = len(self.source)
        if self.config.strict:
            return available
        count = self.config.iterations * self.config.batch_size * self.copies.size
        return max(1, min(count, available))

    def encoded(self, positions: Sequence[int]) -> tuple[Encoded, list[str], list[int]]:
        """Encoded samples of the validation set, with noise that is always the same.

        Returns:
            The samples, their captions, and their positions. A sample with several views
            (views, T, 3, H, W) becomes as many, at position * views + view.
        """
        batch: dict[str, Any] = {}
        if self.sharers.rank == 0:
            batch = self.collate([self.source.read(position, position) for position in positions])
            batch = flat_views({**batch, "positions": list(positions)})
        batch = broad_cast_batch(batch, self.sharers)
        found = list(batch["positions"])
        draws = KeyedDraws(VALIDATION_SEED, found)
        return self.model.encode(batch, draws, dropout=False), list(batch["txt"]), found

    # videos

    def sample(self, step: int) -> None:
        """Sample videos for the first validation captions into the run's folder."""
        copies = self.copies
        count = min(MOST_VIDEOS, max(self.config.batch_size, copies.size))
        count = min(count, len(self.source))
        done = []
        for first in range(0, count, copies.size):
            # Ranks without a prompt sample the last one: partitioned weights need all ranks.
            position = min(first + copies.rank, count - 1)
            sampled = self.sampled(position)
            if first + copies.rank < count and self.sharers.rank == 0:
                done.append(sampled)
        self._write(step, done)
        self._write_overview(step, count)

    @torch.no_grad()
    def sampled(self, position: int) -> Sampled:
        encoded, captions, _ = self.encoded([position])
        encoded = first_of(encoded)  # of several views
        model, fixed = self.model, self.model.sampler.config.fixed_frames
        frames, channels, rows, columns = encoded.latents.shape[1:]
        job = SamplingJob(
            conditioning=encoded.conditioning,
            shape=LatentShape(
                frames=frames - encoded.padding,
                channels=channels,
                rows=rows,
                columns=columns,
                patch_frames=model.config.network.params.patch.frames,
            ),
            scale_factor=model.config.scale_factor,
            device=model.device,
            dtype=model.dtype,
            prefix=encoded.latents[:, :fixed] if fixed else None,  # the clip's own frames
        )
        draws = KeyedDraws(VALIDATION_SEED, [position])
        latents = sample_latents(model.sampler, model.network, job, draws)
        video = None
        if not self.config.only_latents:
            decoded = model.decode(latents * model.config.scale_factor)
            video = to_uint8(to_unit_range(decoded))[0].cpu()
        return Sampled(position, captions[0], video, latents[0])

    def _write(self, step: int, samples: Sequence[Sampled]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for sample in samples:
                stem = f"p{sample.position:03}-model"
                if sample.video is None:
                    path = Path(folder) / f"{stem}.safetensors"
                    write_tensors(path, {"latents": sample.latents.contiguous().cpu()})
                else:
                    path = Path(folder) / f"{stem}.mp4"
                    write_video(path, sample.video, self.fps)
                self.storage.upload(path, samples_folder(step) + path.name)
                caption = samples_folder(step) + f"{stem}.txt"
                self.storage.write_small(caption, sample.caption.encode())
            videos = [sample.video for sample in samples if sample.video is not None]
            if len(videos) > 1:
                path = Path(folder) / f"grid-r{self.copies.rank:04}.mp4"
                write_video(path, tiled(videos, self.config.grid_rows), self.fps)
                self.storage.upload(path, samples_folder(step) + path.name)

    def _write_overview(self, step: int, count: int) -> None:
        if self.copies.rank or self.sharers.rank:
            return
        record = {
            "format_version": 1,
            "step": step,
            "seed": VALIDATION_SEED,
            "weights": "model",
            "samples": count,
            "fps": self.fps,
        }
        self.storage.write_small(samples_index_key(step), json.dumps(record, indent=2).encode())
        log.info(
            "samples written",
            extra={"samples": count, "url": f"{self.storage.url}/{samples_folder(step)}"},
        )


def first_of(encoded: Encoded) -> Encoded:
    """The first sample of a batch."""
    given = encoded.conditioning
    ofs = given.ofs if given.ofs is None or len(given.ofs) == 1 else given.ofs[:1]
    image = None if given.image is None else given.image[:1]
    return replace(
        encoded,
        latents=encoded.latents[:1],
        conditioning=Conditioning(text=given.text[:1], image=image, ofs=ofs),
    )
