"""Find what to convert: a run, a checkpoint of one, a file or a folder, local or s3://."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from app.checkpoint.layout import ATTEMPTS, CHECKPOINTS, CheckpointRef
from app.config.schema.model import DiTConfig
from app.conversion.pipeline import (
    SCHEDULER_FILE,
    PipelineFacts,
    check_scheduler,
    check_scheduler_near,
    read_facts,
    released_facts,
)
from app.conversion.sat_files import FILE_NAME as SAT_CONFIG_FILE
from app.conversion.source import (
    LoraWeights,
    NetworkWeights,
    WeightsOverrides,
    read_network_weights,
)
from app.conversion.vae import SAT_FILE as VAE_FILE
from app.conversion.vae import SAT_PREFIX as VAE_PREFIX
from app.conversion.vae import VaeWeights, read_vae
from app.conversion.weights_file import SAT_TAG_FILE, json_mapping, open_weights, sat_tag
from app.errors import ConfigError, InputMissingError
from app.models.lora.linear import pairs_among
from app.run.weights.description import (
    ModelDescription,
    describe_files,
    describe_section,
    read_sidecar,
)
from app.run.weights.export import ExportRequest, run_model_section, run_weights
from app.storage.fetch import fetch
from app.storage.objects import ObjectMissingError, Storage
from app.storage.opening import is_remote, open_storage

Notify = Callable[[str], None]  # takes one line about each step
VAE_STARTS = (VAE_PREFIX, "encoder.conv_in.", "decoder.conv_in.")


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceRequest:
    """What the caller says about the source.

    Attributes:
        base: YAML files of its model.
        overrides: `key=value` over them.
        alpha: of LoRA pairs; None: the source's own.
        step: of a run's checkpoint; None: the newest.
        weights: of a run: "master" or "ema".
        vae: where the VAE is, if not in the source.
        t5: where the text encoder is, if not in the source.
    """

    base: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    alpha: float | None = None
    step: int | None = None
    weights: str = "master"
    vae: str | None = None
    t5: str | None = None


@dataclass(frozen=True, slots=True)
class RunCheckpoint:
    """A checkpoint of a run, and the network that its weights belong to."""

    url: str  # of the run
    step: int | None  # None: the newest
    network: DiTConfig


@dataclass(frozen=True, slots=True)
class WeightsSource:
    """What to convert, found but not read: each part is read when it is needed."""

    url: str
    request: SourceRequest
    description: ModelDescription
    place: Path | RunCheckpoint
    cache_dir: Path

    @property
    def path(self) -> Path | None:
        """Of the files; None for a run."""
        return self.place if isinstance(self.place, Path) else None

    def network(self, *, pairs_only: bool) -> NetworkWeights | LoraWeights:
        """Every tensor of the network; of a run with LoRA only the pairs, if they suffice."""
        if isinstance(self.place, Path):
            config = self.description.network if self.request.base else None
            overrides = WeightsOverrides(config, self.request.alpha)
            return read_network_weights(self.place, overrides, read_sidecar)
        run, config = self.place, self.place.network
        if config.lora is not None and self.request.alpha is not None:
            config = replace(config, lora=replace(config.lora, alpha=self.request.alpha))
        kind = "lora" if pairs_only and config.lora is not None else "safetensors"
        tensors = run_weights(
            run.url, ExportRequest(kind, run.step, self.request.weights), self.cache_dir
        )
        origin = "the run's configuration"
        if pairs_only and config.lora is not None:
            pairs = pairs_among(tensors)
            return LoraWeights(run.url, "run", pairs, config.lora, config, origin, origin)
        alpha_origin = origin if config.lora is not None else ""
        return NetworkWeights(run.url, "run", tensors, config, origin, alpha_origin)

    def vae(self) -> VaeWeights:
        """The VAE: named by the caller, in the source, or where the model's files say.

        Raises:
            InputMissingError: neither the caller nor the source says where it is.
        """
        if self.request.vae is not None:
            return read_vae(fetch(self.request.vae, self.cache_dir))
        if self.path is not None and _holds_vae(self.path):
            return read_vae(self.path)
        if self.description.vae_path is not None:
            return read_vae(fetch(self.description.vae_path, self.cache_dir))
        raise InputMissingError(
            "the source holds no VAE", where=self.url, fix="name it: --vae 3d-vae.pt"
        )

    def text_encoder(self) -> Path:
        """A local folder with the text encoder and its tokenizer; raises as `vae`."""
        if self.request.t5 is not None:
            return fetch(self.request.t5, self.cache_dir)
        if self.path is not None and (self.path / "text_encoder").is_dir():
            return self.path
        if self.description.t5_path is not None:
            return fetch(self.description.t5_path, self.cache_dir)
        raise InputMissingError(
            "the source holds no text encoder",
            where=self.url,
            fix="name the folder of T5 and its tokenizer: --t5 t5-v1_1-xxl",
        )

    def facts(self, config: DiTConfig) -> PipelineFacts:
        """Scale of the latents, noise schedule and sampler: from the model's files, from the
        pipeline that the source is, or those of the released model of this kind."""
        if self.description.facts is not None:
            return self.description.facts
        found = read_facts(self.path) if self.path is not None else None
        return found or released_facts(config)


def open_weights_source(
    url: str, part: str, request: SourceRequest, cache_dir: Path
) -> WeightsSource:
    """Find the source, and fetch the parts that are needed.

    Args:
        url: of a run, a checkpoint of one, a weights file or folder, or a pipeline folder.
        part: "transformer", "vae" or "pipeline": the rest of a remote folder is not fetched.
        request: what else is known.
        cache_dir: for remote files.

    Raises:
        InputMissingError: the source does not exist.
        ConfigError: no file describes the network of a run.
        WeightsError: it is a pipeline whose scheduler is of another kind.
    """
    given = describe_files(request.base, request.overrides) if request.base else None
    run = _run_of(url, request.step)
    if run is None:
        place = _fetched(url, part, cache_dir)
        if part != "vae":
            check_scheduler_near(place)
        return WeightsSource(url, request, given or ModelDescription(), place, cache_dir)
    run_url, step = run
    recorded = describe_section(run_model_section(run_url), f"{run_url}: model")
    description = given or recorded
    network = description.network or (recorded.network if part == "vae" else None)
    if network is None:
        raise ConfigError(
            "these files describe no network",
            where=", ".join(request.base) or run_url,
            fix="name the model's file first: --base configs/<model>.yaml",
        )
    checkpoint = RunCheckpoint(run_url, step, network)
    return WeightsSource(url, request, description, checkpoint, cache_dir)


def _run_of(url: str, step: int | None) -> tuple[str, int | None] | None:
    """URL and step of the run that a URL names, directly or by one of its checkpoints."""
    if not is_remote(url) and Path(url).is_file():
        return None
    trimmed = url.rstrip("/")
    parent, _, name = trimmed.rpartition("/")
    ref = CheckpointRef.parse(name)
    if ref is not None and f"{parent}/".endswith(f"/{CHECKPOINTS}"):
        return parent.removesuffix(f"/{CHECKPOINTS.rstrip('/')}"), ref.step
    if ATTEMPTS.rstrip("/") in open_storage(trimmed).folders():
        return trimmed, step
    return None


def _fetched(url: str, part: str, cache_dir: Path) -> Path:
    """A local path with the part that is needed."""
    if not is_remote(url):
        return fetch(url, cache_dir)
    storage = open_storage(url)
    scheduler = _small(storage, SCHEDULER_FILE)
    if scheduler is not None and part != "vae":  # a part alone is fetched without it
        where = f"{url.rstrip('/')}/{SCHEDULER_FILE}"
        check_scheduler(json_mapping(scheduler, where), where)
    wanted = {"transformer": "transformer", "vae": "vae"}.get(part)
    if wanted is not None and wanted in storage.folders():
        url = f"{url.rstrip('/')}/{wanted}"
        storage = open_storage(url)
    tag = _small(storage, SAT_TAG_FILE)
    if tag is None:
        return fetch(url, cache_dir)
    # A training folder keeps every checkpoint that it saved: fetch the one that counts.
    name = sat_tag(tag.decode(errors="replace"), f"{url}/{SAT_TAG_FILE}")
    path = fetch(f"{url.rstrip('/')}/{name}", cache_dir)
    described = _small(storage, SAT_CONFIG_FILE)
    if described is not None:
        (path.parent / SAT_CONFIG_FILE).write_bytes(described)
    return path


def _small(storage: Storage, key: str) -> bytes | None:
    try:
        return storage.read_small(key)
    except ObjectMissingError:
        return None


def _holds_vae(path: Path) -> bool:
    if (path / "vae").is_dir() or (path / VAE_FILE).is_file():
        return True
    try:
        with open_weights(path) as file:
            return any(name.startswith(VAE_STARTS) for name in file.names)
    except InputMissingError:
        return False
