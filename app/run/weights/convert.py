"""Convert weights between the layouts of SAT, diffusers and PEFT.

What is read is checked strictly, and what is written can be read back and compared.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from app.conversion import lora
from app.conversion.diffusers import check_expressible
from app.conversion.export import (
    SatForm,
    export_diffusers,
    export_sat,
    export_sat_lora,
    without_pairs,
    write_adapter,
    write_adapter_file,
)
from app.conversion.misfit import num_layers
from app.conversion.pipeline import (
    Scheduler,
    copy_text_encoder,
    image_scale_note,
    released_image_scale,
    write_index,
)
from app.conversion.shard_files import MAX_SHARD_BYTES
from app.conversion.source import (
    LoraWeights,
    NetworkWeights,
    WeightsOverrides,
    read_network_weights,
)
from app.conversion.vae import (
    SAT_FILE,
    VaeWeights,
    export_vae_diffusers,
    export_vae_sat,
    read_vae,
)
from app.conversion.verify import (
    Verdict,
    check_forward,
    compare_tensors,
    network_output,
    pairs_output,
    vae_output,
)
from app.errors import ConfigError, UsageError
from app.models.lora.linear import pairs_among
from app.run.build import DTYPES
from app.run.weights.description import read_sidecar
from app.run.weights.source import Notify, SourceRequest, WeightsSource, open_weights_source
from app.run.weights.target import Destination, open_target

COMMAND = "cogvx convert"
T5_FOLDER = "t5-v1_1-xxl"  # what stock model files call it


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvertRequest:
    """What to write.

    Attributes:
        to: "sat", "diffusers" or "lora".
        part: "transformer", "vae" or "pipeline" (all parts).
        form: of a SAT checkpoint.
        dtype: fp32, bf16 or fp16; None: as the source has it.
        max_shard_bytes: of one safetensors file.
        fold_scale: scale B of LoRA pairs so that their alpha is the one that tools assume; None:
            with `to: lora`.
        scheduler: of a pipeline; None: the one that samples as the model's sampler does.
        verify: read back and compare.
        overwrite: replace existing weights.
        source: what is known about the source.
    """

    to: str
    part: str = "transformer"
    form: SatForm = field(default_factory=SatForm)
    dtype: str | None = None
    max_shard_bytes: int = MAX_SHARD_BYTES
    fold_scale: bool | None = None
    scheduler: Scheduler | None = None
    verify: bool = False
    overwrite: bool = False
    source: SourceRequest = field(default_factory=SourceRequest)

    @property
    def writes_pipeline(self) -> bool:
        """A whole pipeline of diffusers, with its scheduler."""
        return self.part == "pipeline" and self.to == "diffusers"

    def __post_init__(self) -> None:
        refusals = {
            "--to lora writes pairs, which only the transformer has": (
                self.to == "lora" and self.part != "transformer"
            ),
            "--layout v1 and --shards are forms of SAT checkpoints": (
                self.to != "sat" and self.form != SatForm()
            ),
            "--fold-scale changes LoRA pairs, and a diffusers folder has them merged": (
                self.fold_scale is not None and self.to == "diffusers"
            ),
        }
        for what, holds in refusals.items():
            if holds:
                raise UsageError(what, where=COMMAND, fix="leave one of the flags out")


@dataclass(slots=True)
class ConvertReport:
    """What was done.

    Attributes:
        network: what the network is and how that is known.
        files: URLs, in the order they were written.
        verified: by part.
        notes: remarks for the user.
    """

    network: dict[str, object] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    verified: dict[str, Verdict] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Work:
    """One conversion under way."""

    request: ConvertRequest
    source: WeightsSource
    target: Destination
    report: ConvertReport
    notify: Notify

    @property
    def dtype(self) -> torch.dtype | None:
        return DTYPES[self.request.dtype] if self.request.dtype else None


def convert_weights(
    source: str, target: str, request: ConvertRequest, cache_dir: Path, notify: Notify
) -> ConvertReport:
    """Read `source`, write `target`, and compare if requested.

    Args:
        source: a run, a weights file or folder of any layout, or a pipeline; local or s3://.
        target: a folder, local or s3:// (for one file: its name).
        request: what to write.
        cache_dir: for remote files.
        notify: takes one line about each step.

    Raises:
        InputMissingError: the source, the VAE or the text encoder is not there.
        WeightsError: weights do not fit, or what was written is not what was read.
        ConfigError: the other layout has no such network, or diffusers no such sampler.
        UsageError: the target already holds weights.
    """
    notify(f"reading {source}")
    found = open_weights_source(source, request.part, request.source, cache_dir)
    facts = found.description.facts
    if facts is not None and request.writes_pipeline:  # before anything large is read
        facts.scheduler_of(request.scheduler)
    work = _Work(request, found, open_target(target, request.overwrite), ConvertReport(), notify)
    with work.target.staging() as folder:
        network = None if request.part == "vae" else _write_network(work, folder)
        vae = None if request.part == "transformer" else _write_surroundings(work, network, folder)
        if request.verify:  # before it takes the place of anything
            notify("reading back")
            written = folder / (work.target.file_name or "")
            if network is not None:
                inside = written if request.part == "transformer" else written / "transformer"
                work.report.verified["network"] = _verify_network(work, network, inside)
            if vae is not None:
                work.report.verified["vae"] = _verify_vae(work, vae, written)
        notify(f"writing {target}")
        work.report.files = work.target.publish(folder, read_back=request.verify)
    return work.report


def _write_network(work: _Work, folder: Path) -> NetworkWeights | LoraWeights:
    """Returns what was written, before any cast."""
    request = work.request
    read = work.source.network(pairs_only=request.to == "lora")
    _describe(work.report, read)
    _note_image_scale(work, read)
    if request.to == "lora":
        return _write_lora(work, _pairs_of(read), folder)
    if request.fold_scale:
        read = _folded(read)
    work.notify(f"converting {len(read.tensors)} tensors to {request.to}")
    inside = folder if request.part == "transformer" else folder / "transformer"
    if isinstance(read, LoraWeights):
        if request.to != "sat":
            raise ConfigError(
                "the source holds only LoRA pairs, and a transformer folder needs all weights",
                where=read.where,
                fix="convert them with --to lora, or name the run that trained them as the source",
            )
        if request.form.shards > 1:
            raise ConfigError(
                "a checkpoint of LoRA pairs alone cannot be split into tensor-parallel shards",
                where="--shards",
                fix="leave --shards out",
            )
        export_sat_lora(inside, read.tensors, read.lora, work.dtype)
    elif request.to == "sat":
        export_sat(inside, read.tensors, read.network, request.form, work.dtype)
    else:
        check_expressible(read.network)
        if read.lora is not None:
            work.report.notes.append(f"LoRA pairs (alpha {read.lora.alpha:g}) merged into weights")
        export_diffusers(inside, read.tensors, read.network, work.dtype, request.max_shard_bytes)
    return read


def _write_lora(work: _Work, pairs: LoraWeights, folder: Path) -> LoraWeights:
    """Returns what was written: with another scale, if it was folded."""
    work.notify(f"converting {len(pairs.tensors)} tensors to lora")
    network = pairs.network
    layers = network.num_layers if network is not None else num_layers(pairs.tensors)
    fold_scale = work.request.fold_scale is not False
    peft = lora.to_peft(pairs.tensors, pairs.lora, layers, fold_scale=fold_scale)
    if work.target.file_name is None:
        write_adapter(folder, peft, work.dtype)
    else:
        write_adapter_file(folder / work.target.file_name, peft, work.dtype)
    if not fold_scale:
        return pairs
    tensors, changed = lora.folded(pairs.tensors, pairs.lora, float(pairs.lora.rank))
    return replace(pairs, tensors=tensors, lora=changed)


def _describe(report: ConvertReport, read: NetworkWeights | LoraWeights) -> None:
    report.network = {"layout": read.kind, "sizes_from": read.origin if read.network else None}
    if read.network is not None:
        names = ("num_layers", "hidden_size", "num_attention_heads", "in_channels")
        report.network |= {name: getattr(read.network, name) for name in names}
    if read.lora is not None:
        report.network |= {
            "lora_rank": read.lora.rank,
            "lora_alpha": read.lora.alpha,
            "lora_alpha_from": read.alpha_origin,
        }


def _folded(read: NetworkWeights | LoraWeights) -> NetworkWeights | LoraWeights:
    """Pairs with alpha 1, as in stock model files."""
    if read.lora is None:
        raise ConfigError(
            "there are no LoRA pairs whose scale could be folded",
            where=read.where,
            fix="leave --fold-scale out",
        )
    tensors, changed = lora.folded(read.tensors, read.lora, 1.0)
    if isinstance(read, NetworkWeights):
        return replace(read, tensors=tensors, network=replace(read.network, lora=changed))
    return replace(read, tensors=tensors, lora=changed)


def _note_image_scale(work: _Work, read: NetworkWeights | LoraWeights) -> None:
    """Say where diffusers will feed another image latent than the training did."""
    config, request = read.network, work.request
    if config is None or request.to == "sat":
        return
    facts = work.source.facts(config)
    released = released_image_scale(config, facts.scale_factor)
    fed = facts.fed_image_scale if request.writes_pipeline else released
    note = image_scale_note(config, facts, fed)
    if note is not None:
        work.report.notes.append(note)


def _pairs_of(read: NetworkWeights | LoraWeights) -> LoraWeights:
    if isinstance(read, LoraWeights):
        return read
    if read.lora is None:
        raise ConfigError(
            "the source has no LoRA pairs",
            where=read.where,
            fix="convert the whole network (--to diffusers), or name a LoRA run or checkpoint",
        )
    pairs = pairs_among(read.tensors)
    known = (read.lora, read.network, read.origin, read.alpha_origin)
    return LoraWeights(read.where, read.kind, pairs, *known)


def _write_surroundings(
    work: _Work, network: NetworkWeights | LoraWeights | None, folder: Path
) -> VaeWeights:
    """The VAE; for a pipeline also the text encoder, and the index that joins the parts."""
    request = work.request
    vae = work.source.vae()
    config = None if network is None else network.network
    facts = work.source.facts(config) if config is not None else work.source.description.facts
    whole = request.part == "pipeline"
    inside = folder / "vae" if whole else folder
    # The network's own scale counts, whatever VAE file was named.
    scale = facts.latent_scale if facts is not None else vae.scale
    if request.to == "sat":
        export_vae_sat(inside / (work.target.file_name or SAT_FILE), vae, work.dtype)
    elif scale is None:
        raise ConfigError(
            "the scale of the latents is not known: it is not part of these files",
            where=work.source.url,
            fix="name the model that the VAE is for: --base configs/<model>.yaml",
        )
    else:
        export_vae_diffusers(inside, vae, scale, work.dtype, request.max_shard_bytes)
    if whole:
        work.notify("copying the text encoder")
        text, apart = work.source.text_encoder(), request.to == "diffusers"
        copy_text_encoder(text, folder if apart else folder / T5_FOLDER, apart=apart)
    if request.writes_pipeline and config is not None and facts is not None:
        write_index(folder, config, facts.schedule, facts.scheduler_of(request.scheduler))
    return vae


def _verify_network(work: _Work, source: NetworkWeights | LoraWeights, path: Path) -> Verdict:
    """Compare a network, or pairs, with what was written to `path`."""
    written = read_network_weights(path, WeightsOverrides(), read_sidecar)
    expected, is_stored = source.tensors, True
    if work.request.to == "diffusers" and source.network is not None:
        expected = without_pairs(source.tensors, source.network)
        # A fixed table is computed on both sides, and diffusers does not store it.
        is_stored = source.network.position.learnable
    names = [name for name in expected if name != "position.table" or is_stored]
    compared, difference = compare_tensors(
        {name: expected[name] for name in names},
        {name: t for name, t in written.tensors.items() if name in names or name not in expected},
        str(path),
    )
    work.notify("running one forward pass of both")
    dtypes = {next(iter(t.values())).dtype for t in (source.tensors, written.tensors)}
    forward = check_forward(_output(source), _output(written), dtypes, str(path))
    is_lora = isinstance(source, LoraWeights)
    what = "every pair on one input" if is_lora else "the network on one small clip"
    return Verdict(len(names), compared, difference, what, forward)


def _output(weights: NetworkWeights | LoraWeights) -> Tensor:
    if isinstance(weights, LoraWeights):
        return pairs_output(weights.tensors, weights.lora)
    return network_output(weights.tensors, weights.network)


def _verify_vae(work: _Work, source: VaeWeights, path: Path) -> Verdict:
    written = read_vae(path)
    compared, difference = compare_tensors(source.tensors, written.tensors, str(path))
    work.notify("encoding and decoding one clip with both VAEs")
    dtypes = {next(iter(t.values())).dtype for t in (source.tensors, written.tensors)}
    outputs = (
        vae_output(source.tensors, source.config),
        vae_output(written.tensors, written.config),
    )
    forward = check_forward(*outputs, dtypes, str(path))
    what = "one small clip, encoded and decoded"
    return Verdict(len(source.tensors), compared, difference, what, forward)
