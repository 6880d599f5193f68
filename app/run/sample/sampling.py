"""Sample videos from prompts: what `cogvx sample` does in each rank.

Which rank makes a sample changes nothing of it: its random numbers are keyed by the seed, the
number of its prompt and its own number, and every sample is made alone.

Axes: B batch (1 here), T frames, t latent frames, C channels, H rows, W columns.
"""

from __future__ import annotations

import json
import logging
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from app.config.schema.run import RunConfig
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
from app.run.sample.model import Studio, check_size, open_studio
from app.run.sample.output import LATENT, VIDEO, Item, Output, packed_strip, unpacked_strip
from app.run.sample.request import OwnOptions, SampleRequest, VideoSize, prompts_of, request_of
from app.run.weights.export import run_model_section
from app.storage.fetch import fetch, version_of
from app.storage.node_disk import node_folder
from app.storage.opening import open_storage
from app.training.engine import prepare_process
from app.training.step import DiffusionModel

log = logging.getLogger(__name__)

# (steps done by this rank, steps in all, what is being made)
Watch = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Job:
    """A sampling call in one rank."""

    config: RunConfig
    own: OwnOptions
    request: SampleRequest
    groups: ProcessGroups
    watch: Watch


def sample_words(
    words: Sequence[str], parser: ArgumentParser, typed: Iterable[str], watch: Watch
) -> dict[str, Any]:
    """`cogvx sample` inside one rank; what was made on rank 0, nothing elsewhere.

    Args:
        words: the command line after `sample`.
        parser: with the command's own options.
        typed: lines of standard input, read only if the prompts come from there.
        watch: told about every step of this rank.
    """
    args = parse_args(words, parser)
    config, own = args.run_config, own_options(args)
    request = request_of(config, own)
    if config.model.sampler.params.fixed_frames:
        raise ConfigError(
            "fixed_frames keeps the first latent frames of a clip, and there is no clip",
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
    return sample(Job(config, own, request, args.groups, watch), prompts)


def model_file_of_run(url: str, folder: Path) -> Path:
    """A YAML file with the `model` section of a run, as `--base` takes it."""
    path = folder / "model_of_run.yaml"
    path.write_text(yaml.safe_dump({"model": run_model_section(url)}))
    return path


def sample(job: Job, prompts: Iterable[Prompt]) -> dict[str, Any]:
    """Make every sample that does not lie there yet; what was made, on rank 0.

    Args:
        prompts: a list, or an iterator that gives one prompt after the other as they are typed
            (one process only).

    Raises:
        ConfigError: a sample with other settings lies where one would be written.
        CogvxError: weights, images or the output cannot be used.
    """
    rank = job.groups.rank
    output = Output(open_storage(job.request.out), job.request.fps)
    if isinstance(prompts, Sequence):
        # Before the network is read: a hundred videos shall not wait for a picture that is missing.
        on_rank_zero(rank.rank, lambda: count_images(p.image for p in prompts if p.image))
    studio = open_studio(job.config, job.own, job.groups)
    maker = Maker(job, output, studio)
    if isinstance(prompts, Sequence):
        maker.make(items_of(prompts, job.request.per_prompt), keeps_text_encoder=False)
    else:
        for prompt in prompts:
            maker.make(items_of([prompt], job.request.per_prompt), keeps_text_encoder=True)
        if not maker.made and not maker.skipped:
            raise InputMissingError(
                "no prompt was typed", where="standard input", fix="type one prompt per line"
            )
    found = _overview(job, output, maker)
    if rank.rank == 0:
        log.info("sampled", extra={"url": output.storage.url, "samples": len(found["samples"])})
    return found


def items_of(prompts: Sequence[Prompt], per_prompt: int) -> list[Item]:
    """Every sample, prompt by prompt."""
    return [Item(prompt, k) for prompt in prompts for k in range(per_prompt)]


class Maker:
    """Makes this rank's share of samples and remembers what it made."""

    def __init__(self, job: Job, output: Output, studio: Studio) -> None:
        self.job = job
        self.output = output
        self.studio = studio
        self.made: list[tuple[int, dict[str, Any]]] = []  # position, record
        self.strips: list[tuple[int, bytes]] = []
        self.skipped: list[Item] = []

    def make(self, items: Sequence[Item], *, keeps_text_encoder: bool) -> None:
        """Make those of the samples that are missing and fall to this rank."""
        rank = self.job.groups.rank
        done = on_rank_zero(rank.rank, lambda: self._done(items))
        missing = [item for item, is_done in zip(items, done, strict=True) if not is_done]
        self.skipped += [item for item, is_done in zip(items, done, strict=True) if is_done]
        mine = [missing[i] for i in positions_of_rank(len(missing), rank.rank, rank.world_size)]
        if not mine:
            return
        texts = self.studio.embedded([item.prompt.text for item in mine])
        if not keeps_text_encoder:
            self.studio.drop_text_encoder()
        steps = self.studio.model.sampler.config.num_steps
        for number, item in enumerate(mine):
            name = f"sample {number + 1} of {len(mine)}"

            def progress(step: int, _: int, before: int = number * steps, name: str = name) -> None:
                self.job.watch(before + step, steps * len(mine), name)

            self._make_one(item, texts[item.prompt.text], progress)

    def _done(self, items: Sequence[Item]) -> list[bool]:
        if self.job.request.overwrite:
            return [False] * len(items)
        wanted = [VIDEO] * self.job.request.decodes + [LATENT] * self.job.request.keeps_latents
        return [self.output.is_done(item, self._settings(item), wanted) for item in items]

    @torch.no_grad()
    def _make_one(self, item: Item, text: Tensor, progress: Callable[[int, int], None]) -> None:
        model, request = self.studio.model, self.job.request
        draws = self._draws(item)
        size, image = request.size, None
        if item.prompt.image is not None:
            image, size = placed_image(model, item.prompt.image, size, draws)
        network = model.config.network.params
        shape = self.studio.shape(size)
        latents = sample_latents(
            model.sampler,
            model.network,
            self._sampling_job(text, image, shape),
            draws,
            progress,
        )
        video = None
        if request.decodes:
            video = to_uint8(to_unit_range(model.decode(latents * model.config.scale_factor)))[0]
            self.strips.append((item.position, packed_strip(video)))
        kept = latents[0] if request.keeps_latents else None
        settings = {
            **self._settings(item),
            "rows": size.rows,
            "columns": size.columns,
            "frames": network.time_compressed_rate * (size.latent_frames - 1) + 1,
        }
        self.made.append((item.position, self.output.write(item, video, kept, settings)))

    def _sampling_job(self, text: Tensor, image: Tensor | None, shape: LatentShape) -> SamplingJob:
        model = self.studio.model
        text = text.to(model.device)
        conditional = Conditioning(text=text, image=image, ofs=model.ofs())
        nothing = model.conditioner.unconditional_like(text)
        unconditional = Conditioning(text=nothing, image=image, ofs=model.ofs())
        return SamplingJob(
            conditional=conditional,
            unconditional=unconditional,
            count=1,
            shape=shape,
            scale_factor=model.config.scale_factor,
            device=model.device,
            dtype=model.dtype,
        )

    def _draws(self, item: Item) -> Draws:
        if self.job.config.compat.draws == "sat":
            return GlobalDraws(self.studio.model.device)
        return KeyedDraws(self.job.request.seed, [item.position])

    def _settings(self, item: Item) -> dict[str, Any]:
        """What the sample is made from; JSON gives back the same."""
        request = self.job.request
        settings = {
            "prompt": item.prompt.text,
            "image": item.prompt.image,
            "image_version": version_of(item.prompt.image) if item.prompt.image else None,
            "seed": request.seed,
            "k": item.k,
            "fps": request.fps,
            "latent_frames": request.size.latent_frames,
            "asked_size": [request.size.rows, request.size.columns],
            **self.studio.settings,
        }
        return dict(json.loads(json.dumps(settings)))


def _overview(job: Job, output: Output, maker: Maker) -> dict[str, Any]:
    """List and contact sheet of all ranks' samples, written by rank 0."""
    rank = job.groups.rank
    exchange = StoreExchange(job.groups.store, rank=rank.rank, world_size=rank.world_size)
    records = exchange.gather("sample-records", json.dumps(maker.made).encode())
    strips = exchange.gather("sample-strips", b"".join(_framed(maker.strips)))
    found: dict[str, Any] = {}
    if rank.rank == 0:
        made = sorted((tuple(pair) for part in records for pair in json.loads(part)), key=_first)
        pictures = sorted((pair for part in strips for pair in _unframed(part)), key=_first)
        found = {
            "url": output.storage.url,
            "seed": job.request.seed,
            "made": len(made),
            "skipped": len(maker.skipped),
        }
        made += [(item.position, output.record(item)) for item in maker.skipped]
        samples = [record for _, record in sorted(made, key=_first)]
        keys = output.write_overview(found, samples, [unpacked_strip(data) for _, data in pictures])
        found |= {"samples": samples, "files": keys}
    exchange.barrier()
    return found


def _first(pair: tuple[Any, Any]) -> int:
    return int(pair[0])


def _framed(pairs: Sequence[tuple[int, bytes]]) -> Iterator[bytes]:
    for position, data in pairs:
        yield position.to_bytes(8, "big") + len(data).to_bytes(8, "big") + data


def _unframed(data: bytes) -> Iterator[tuple[int, bytes]]:
    place = 0
    while place < len(data):
        position = int.from_bytes(data[place : place + 8], "big")
        stop = place + 16 + int.from_bytes(data[place + 8 : place + 16], "big")
        yield position, data[place + 16 : stop]
        place = stop


def own_options(args: Namespace) -> OwnOptions:
    """The command's own options out of a Namespace."""
    values: Mapping[str, Any] = vars(args)
    return OwnOptions(
        prompts=tuple(values.get("prompt") or ()),
        image=values.get("image"),
        size=values.get("size"),
        num_frames=values.get("num_frames"),
        lora=values.get("lora"),
        run=values.get("run"),
        step=values.get("step"),
        weights=values.get("weights"),
        save_latents=bool(values.get("save_latents")),
        overwrite=bool(values.get("overwrite")),
    )


PIXELS_PER_LATENT = 8


def count_images(urls: Iterable[str]) -> int:
    """Read every picture, so that a missing or damaged one is found before anything is computed.

    Raises:
        InputMissingError, DataError: one is not there, or is no picture.
    """
    return len([read_image(fetch(url, node_folder("images"))) for url in sorted(set(urls))])


@torch.no_grad()
def placed_image(
    model: DiffusionModel, url: str, size: VideoSize, draws: Draws
) -> tuple[Tensor, VideoSize]:
    """The picture as the network wants it, and the size of the video.

    1.5 keeps the picture's proportions: the short side is that of `size`, the long one follows.
    1.0 fills the asked size, its centre kept.

    Args:
        url: of a picture, local or s3://.
        draws: asked for image_posterior.

    Returns:
        (1, t + padding, C, h, w) scaled latent on the first latent frame, zeros after it.
    """
    network = model.config.network.params
    picture = read_image(fetch(url, node_folder("images")))
    if network.patch.frames > 1:
        multiple = PIXELS_PER_LATENT * network.patch.rows
        old = (picture.shape[1], picture.shape[2])
        rows, columns = size_by_ratio(old, size.short_side, multiple)
        size = replace(size, rows=rows, columns=columns)
        picture = resized(picture, (rows, columns))
    else:
        picture = covered(picture, (size.rows, size.columns))
    frame = model.pixels(model.on_device(picture))[None, None]
    latent = model.vae.encode(frame).draw(draws, "image_posterior") * model.image_latent_scale
    frames = size.latent_frames + padding_count(size.latent_frames, network.patch.frames)
    every = model.config.noised_image_all_concat
    return placed_image_latent(latent, frames, None, all_frames=every), size
