"""Sample videos from prompts: what `cogvx sample` does in each rank.

A sample does not depend on the rank that makes it: its random numbers are keyed by the seed, the
number of its prompt and its own number, and its batch has one sample.

Axes: B batch (1 here), T frames, t latent frames, C channels, H rows, W columns.
"""

from __future__ import annotations

import json
import logging
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from app.config.runnable import samplable_run
from app.config.schema.run import SamplableRun
from app.diffusion.frames_padding import padding_count
from app.diffusion.image_conditioning import placed_image_latent
from app.distributed.agreement import on_rank_zero
from app.distributed.exchange import StoreExchange
from app.distributed.groups import ProcessGroups
from app.distributed.seeding import Draws, GlobalDraws, KeyedDraws
from app.errors import ConfigError, InputMissingError
from app.evaluation.condition_image import covered, resized, size_by_ratio
from app.evaluation.prompts import Prompt
from app.evaluation.sampling import (
    LatentShape,
    SamplingJob,
    positions_of_rank,
    sample_latents,
    to_unit_range,
)
from app.evaluation.video_file import read_image, to_uint8
from app.models.conditioning import Conditioning
from app.run.arguments import parse_args, start_distributed
from app.run.sample.model import (
    PIXELS_PER_LATENT,
    check_size,
    latent_shape,
    load_model,
    sample_settings,
)
from app.run.sample.output import LATENT, VIDEO, Item, Output, packed_strip, unpacked_strip
from app.run.sample.request import OwnOptions, SampleRequest, VideoSize, prompts_of, request_of
from app.run.weights.export import run_model_section
from app.storage.fetch import fetch, file_version
from app.storage.node_disk import node_folder
from app.storage.opening import open_storage
from app.training.engine import prepare_process
from app.training.step import DiffusionModel

log = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]  # (steps done by this rank, steps in all, sample)


@dataclass(frozen=True, slots=True)
class Job:
    """A sampling call in one rank."""

    config: SamplableRun
    own: OwnOptions
    request: SampleRequest
    groups: ProcessGroups
    progress: Progress


def sample_words(
    words: Sequence[str], parser: ArgumentParser, typed: Iterable[str], progress: Progress
) -> dict[str, Any]:
    """`cogvx sample` inside one rank; returns the overview on rank 0, {} elsewhere.

    Args:
        words: the command line after `sample`.
        parser: with the command's own options.
        typed: lines of standard input, read only if the prompts come from there.
        progress: called after every step of this rank.
    """
    args = parse_args(words, parser)
    own = OwnOptions.from_args(args)
    config = samplable_run(args.run_config, has_run=own.run is not None)
    request = request_of(config, own)
    if config.model.sampler.params.fixed_frames:
        raise ConfigError(
            "fixed_frames keeps the first latent frames of a clip, and sampling has no clip",
            where="model.sampler_config.params.fixed_frames",
            fix="set it to 0; validation during training samples with it",
        )
    prompts = prompts_of(config, own, typed, with_images=request.with_images)
    check_size(config.model, request.size)
    prepare_process(on_cpu=not torch.cuda.is_available())
    start_distributed(args)
    rank = args.groups.rank
    if rank.world_size > 1 and not isinstance(prompts, Sequence):
        read = on_rank_zero(rank.rank, lambda: [asdict(prompt) for prompt in prompts])
        prompts = [Prompt(**fields) for fields in read]
    return sample(Job(config, own, request, args.groups, progress), prompts)


def model_file_of_run(url: str, folder: Path) -> Path:
    """A YAML file with the `model` section of a run, as `--base` takes it."""
    path = folder / "model_of_run.yaml"
    path.write_text(yaml.safe_dump({"model": run_model_section(url)}))
    return path


def sample(job: Job, prompts: Iterable[Prompt]) -> dict[str, Any]:
    """Make every missing sample; returns the overview on rank 0.

    Args:
        prompts: a list, or an iterator of prompts as they are typed (one process only).

    Raises:
        ConfigError: a sample with other settings exists in the place of one.
        CogvxError: weights, images or the output cannot be used.
    """
    rank = job.groups.rank
    output = Output(open_storage(job.request.out), job.request.fps)
    if isinstance(prompts, Sequence):
        # Before the network is read: a missing image must not be found after many videos.
        on_rank_zero(rank.rank, lambda: check_images(p.image for p in prompts if p.image))
    model = load_model(job.config, job.own, job.groups)
    sampler = RankSampler(job, output, model, sample_settings(job.config, job.own))
    if isinstance(prompts, Sequence):
        sampler.sample(items_of(prompts, job.request.per_prompt), keeps_text_encoder=False)
    else:
        for prompt in prompts:
            sampler.sample(items_of([prompt], job.request.per_prompt), keeps_text_encoder=True)
        if not sampler.made and not sampler.skipped:
            raise InputMissingError(
                "no prompt was typed", where="standard input", fix="type one prompt per line"
            )
    found = _overview(sampler)
    if rank.rank == 0:
        log.info("sampled", extra={"url": output.storage.url, "samples": len(found["samples"])})
    return found


def items_of(prompts: Sequence[Prompt], per_prompt: int) -> list[Item]:
    """Every sample, prompt by prompt."""
    return [Item(prompt, k) for prompt in prompts for k in range(per_prompt)]


@dataclass(slots=True)
class RankSampler:
    """Makes this rank's share of samples and keeps their records.

    Attributes:
        settings: see `sample_settings`.
        made: (position, record, packed strip of frames or None) of each new sample.
        skipped: what existed.
    """

    job: Job
    output: Output
    model: DiffusionModel
    settings: Mapping[str, Any]
    made: list[tuple[int, dict[str, Any], Any]] = field(default_factory=list)
    skipped: list[Item] = field(default_factory=list)

    def sample(self, items: Sequence[Item], *, keeps_text_encoder: bool) -> None:
        """Make the missing ones that belong to this rank."""
        rank = self.job.groups.rank
        done = on_rank_zero(rank.rank, lambda: self._done(items))
        missing = [item for item, is_done in zip(items, done, strict=True) if not is_done]
        self.skipped += [item for item, is_done in zip(items, done, strict=True) if is_done]
        mine = [missing[i] for i in positions_of_rank(len(missing), rank.rank, rank.world_size)]
        if not mine:
            return
        conditioner = self.model.conditioner
        captions = dict.fromkeys(item.prompt.text for item in mine)
        texts = {caption: conditioner.embed([caption], None) for caption in captions}
        if not keeps_text_encoder:
            del conditioner.encoder  # its memory is for the network
            if self.model.device.type == "cuda":
                torch.cuda.empty_cache()
        steps = self.model.sampler.config.num_steps
        for number, item in enumerate(mine):
            name = f"sample {number + 1} of {len(mine)}"

            def progress(step: int, _: int, before: int = number * steps, name: str = name) -> None:
                self.job.progress(before + step, steps * len(mine), name)

            self._sample_one(item, texts[item.prompt.text], progress)

    def _done(self, items: Sequence[Item]) -> list[bool]:
        if self.job.request.overwrite:
            return [False] * len(items)
        wanted = [VIDEO] * self.job.request.decodes + [LATENT] * self.job.request.keeps_latents
        return [self.output.is_done(item, self._settings(item), wanted) for item in items]

    @torch.no_grad()
    def _sample_one(self, item: Item, text: Tensor, progress: Callable[[int, int], None]) -> None:
        model, request = self.model, self.job.request
        draws = self._draws(item)
        size, image = request.size, None
        if item.prompt.image is not None:
            image, size = placed_image(model, item.prompt.image, size, draws)
        network = model.config.network.params
        job = self._sampling_job(text, image, latent_shape(model.config, size))
        latents = sample_latents(model.sampler, model.network, job, draws, progress)
        video = None
        if request.decodes:
            video = to_uint8(to_unit_range(model.decode(latents * model.config.scale_factor)))[0]
        kept = latents[0] if request.keeps_latents else None
        settings = {
            **self._settings(item),
            "rows": size.rows,
            "columns": size.columns,
            "frames": network.time_compressed_rate * (size.latent_frames - 1) + 1,
        }
        record = self.output.write(item, video, kept, settings)
        packed = None if video is None else packed_strip(video)
        self.made.append((item.position, record, packed))

    def _sampling_job(self, text: Tensor, image: Tensor | None, shape: LatentShape) -> SamplingJob:
        model = self.model
        return SamplingJob(
            conditioning=Conditioning(text=text.to(model.device), image=image, ofs=model.ofs()),
            shape=shape,
            scale_factor=model.config.scale_factor,
            device=model.device,
            dtype=model.dtype,
        )

    def _draws(self, item: Item) -> Draws:
        if self.job.config.compat.draws == "sat":
            return GlobalDraws(self.model.device)
        return KeyedDraws(self.job.request.seed, [item.position])

    def _settings(self, item: Item) -> dict[str, Any]:
        """What the sample depends on, as JSON gives it back."""
        request = self.job.request
        settings = {
            "prompt": item.prompt.text,
            "image": item.prompt.image,
            "image_version": file_version(item.prompt.image) if item.prompt.image else None,
            "seed": request.seed,
            "k": item.k,
            "fps": request.fps,
            "latent_frames": request.size.latent_frames,
            "asked_size": [request.size.rows, request.size.columns],
            **self.settings,
        }
        return dict(json.loads(json.dumps(settings)))


def _overview(sampler: RankSampler) -> dict[str, Any]:
    """List and contact sheet of all ranks' samples, written by rank 0."""
    job, output = sampler.job, sampler.output
    rank = job.groups.rank
    exchange = StoreExchange(job.groups.store, rank=rank.rank, world_size=rank.world_size)
    gathered = exchange.gather("samples", json.dumps(sampler.made).encode())
    found: dict[str, Any] = {}
    if rank.rank == 0:
        made = sorted((tuple(one) for part in gathered for one in json.loads(part)), key=_first)
        found = {
            "url": output.storage.url,
            "seed": job.request.seed,
            "made": len(made),
            "skipped": len(sampler.skipped),
        }
        strips = [unpacked_strip(packed) for _, _, packed in made if packed is not None]
        made += [(item.position, output.record(item), None) for item in sampler.skipped]
        samples = [record for _, record, _ in sorted(made, key=_first)]
        keys = output.write_overview(found, samples, strips)
        found |= {"samples": samples, "files": keys}
    exchange.barrier()
    return found


def _first(sample: tuple[Any, ...]) -> int:
    return int(sample[0])


def check_images(urls: Iterable[str]) -> None:
    """Read every image, so that a missing or damaged one is found before anything is computed.

    Raises:
        InputMissingError, DataError: one does not exist, or is not an image.
    """
    for url in sorted(set(urls)):
        read_image(fetch(url, node_folder("images")))


@torch.no_grad()
def placed_image(
    model: DiffusionModel, url: str, size: VideoSize, draws: Draws
) -> tuple[Tensor, VideoSize]:
    """The image as the network takes it, and the size of the video.

    1.5 keeps the image's proportions: the short side is that of `size`, the long one follows.
    1.0 crops the centre to the requested size.

    Args:
        url: of an image, local or s3://.
        draws: for image_posterior.

    Returns:
        (1, t + padding, C, h, w) scaled latent on the first latent frame, zeros after it.
    """
    network = model.config.network.params
    image = read_image(fetch(url, node_folder("images")))
    if network.patch.frames > 1:
        multiple = PIXELS_PER_LATENT * network.patch.rows
        old = (image.shape[1], image.shape[2])
        rows, columns = size_by_ratio(old, size.short_side, multiple)
        size = replace(size, rows=rows, columns=columns)
        image = resized(image, (rows, columns))
    else:
        image = covered(image, (size.rows, size.columns))
    frame = model.pixels(model.on_device(image))[None, None]
    latent = model.vae.encode(frame).draw(draws, "image_posterior") * model.image_latent_scale
    frames = size.latent_frames + padding_count(size.latent_frames, network.patch.frames)
    every = model.config.noised_image_all_concat
    return placed_image_latent(latent, frames, None, all_frames=every), size
