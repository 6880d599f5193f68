"""Weights from one layout into another: SAT, diffusers, PEFT.

What is read is checked strictly, what is written can be read back and compared.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    write_peft,
)
from app.conversion.pipeline import PipelineFacts, copy_text_encoder, write_index
from app.conversion.shard_files import MAX_SHARD_BYTES
from app.conversion.source import NetworkWeights, Told, read_network
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
from app.run.build import DTYPES
from app.run.weights.description import read_beside
from app.run.weights.source import SourceRequest, Tell, WeightsSource, open_weights_source
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
        fold_scale: change B of LoRA pairs so that tools may take their scale for granted.
        scheduler: "dpm" or "ddim"; None: the one that samples as the model's files say.
        verify: read back and compare.
        overwrite: replace weights that are there.
        source: what is known about the source.
    """

    to: str
    part: str = "transformer"
    form: SatForm = field(default_factory=SatForm)
    dtype: str | None = None
    max_shard_bytes: int = MAX_SHARD_BYTES
    fold_scale: bool = False
    scheduler: str | None = None
    verify: bool = False
    overwrite: bool = False
    source: SourceRequest = field(default_factory=SourceRequest)

    def __post_init__(self) -> None:
        refusals = {
            "--to lora writes pairs, which only the transformer has": (
                self.to == "lora" and self.part != "transformer"
            ),
            "--layout v1 and --shards are forms of SAT checkpoints": (
                self.to != "sat" and self.form != SatForm()
            ),
            "--fold-scale changes LoRA pairs, which diffusers folders have merged": (
                self.fold_scale and self.to == "diffusers"
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
        notes: what a person should know.
    """

    network: dict[str, object] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    verified: dict[str, Verdict] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Work:
    """One conversion under way."""

    request: ConvertRequest
    source: WeightsSource
    target: Destination
    report: ConvertReport
    tell: Tell
    network: NetworkWeights | None = None  # what was written, before any cast
    vae: VaeWeights | None = None

    @property
    def dtype(self) -> torch.dtype | None:
        return DTYPES[self.request.dtype] if self.request.dtype else None


def convert(
    source: str, target: str, request: ConvertRequest, cache_dir: Path, tell: Tell
) -> ConvertReport:
    """Read `source`, write `target`, and compare if that was asked for.

    Args:
        source: a run, a weights file or folder of any layout, or a pipeline; local or s3://.
        target: a folder, local or s3:// (for one file: its name).
        request: what to write.
        cache_dir: for remote files.
        tell: takes one line about each step.

    Raises:
        InputMissingError: the source, the VAE or the text encoder is not there.
        WeightsError: weights do not fit, or what was written is not what was read.
        ConfigError: the other layout has no such network.
        UsageError: there are weights in the target already.
    """
    tell(f"reading {source}")
    found = open_weights_source(source, request.part, request.source, cache_dir)
    work = _Work(request, found, open_target(target, request.overwrite), ConvertReport(), tell)
    with work.target.staging() as folder:
        if request.part != "vae":
            _write_network(work, folder)
        if request.part != "transformer":
            _write_surroundings(work, folder)
        if request.verify:  # before it takes the place of anything
            _verify(work, folder / (work.target.file_name or ""))
        tell(f"writing {target}")
        work.report.files = work.target.publish(folder, read_back=request.verify)
    return work.report


def _write_network(work: _Work, folder: Path) -> None:
    request = work.request
    wants_pairs = request.to == "lora"
    read = work.source.network(pairs_only=wants_pairs)
    _describe(work.report, read)
    if request.fold_scale:
        read = _folded(read, request.to)
    if wants_pairs:
        read = _pairs_of(read)
    work.network = read
    work.tell(f"converting {len(read.tensors)} tensors to {request.to}")
    inside = folder if request.part == "transformer" else folder / "transformer"
    if wants_pairs:
        assert read.lora is not None
        layers = read.config.num_layers if read.config is not None else _layers_of(read)
        peft = lora.to_peft(read.tensors, read.lora, layers)
        write_peft(folder / (work.target.file_name or lora.FILE_NAME), peft, work.dtype)
    elif read.is_pairs and request.to == "sat":
        assert read.lora is not None
        if request.form.shards > 1:
            raise ConfigError(
                "LoRA pairs alone are not shared by tensor-parallel ranks",
                where="--shards",
                fix="leave --shards out",
            )
        export_sat_lora(inside, read.tensors, read.lora, work.dtype)
    elif read.is_pairs or read.config is None:
        raise ConfigError(
            "the source holds LoRA pairs alone, and a transformer folder needs all weights",
            where=read.where,
            fix="convert them with --to lora, or name the run that trained them as the source",
        )
    elif request.to == "sat":
        export_sat(inside, read.tensors, read.config, request.form, work.dtype)
    else:
        check_expressible(read.config)
        if read.lora is not None:
            work.report.notes.append(f"LoRA pairs (alpha {read.lora.alpha:g}) merged into weights")
        export_diffusers(inside, read.tensors, read.config, work.dtype, request.max_shard_bytes)


def _describe(report: ConvertReport, read: NetworkWeights) -> None:
    report.network = {"layout": read.kind, "sizes_from": read.origin if read.config else None}
    if read.config is not None:
        names = ("num_layers", "hidden_size", "num_attention_heads", "in_channels")
        report.network |= {name: getattr(read.config, name) for name in names}
    if read.lora is not None:
        report.network |= {
            "lora_rank": read.lora.rank,
            "lora_alpha": read.lora.alpha,
            "lora_alpha_from": read.alpha_origin,
        }


def _folded(read: NetworkWeights, to: str) -> NetworkWeights:
    """Pairs whose alpha tools may guess: r for those that know none, 1 as in stock model files."""
    if read.lora is None:
        raise ConfigError(
            "there are no LoRA pairs whose scale could be folded",
            where=read.where,
            fix="leave --fold-scale out",
        )
    alpha = float(read.lora.rank) if to == "lora" else 1.0
    tensors, changed = lora.folded(read.tensors, read.lora, alpha)
    config = None if read.config is None else replace(read.config, lora=changed)
    return replace(read, tensors=tensors, lora=changed, config=config)


def _pairs_of(read: NetworkWeights) -> NetworkWeights:
    pairs = {n: t for n, t in read.tensors.items() if n.endswith((".lora_a", ".lora_b"))}
    if not pairs:
        raise ConfigError(
            "the source has no LoRA pairs",
            where=read.where,
            fix="convert the whole network (--to diffusers), or name a LoRA run or checkpoint",
        )
    return replace(read, tensors=pairs)


def _layers_of(read: NetworkWeights) -> int:
    return 1 + max(int(name.split(".")[1]) for name in read.tensors)


def _write_surroundings(work: _Work, folder: Path) -> None:
    """The VAE, and for a pipeline the text encoder and what says how they work together."""
    request = work.request
    read = work.source.vae()
    facts = _facts(work)
    if facts is not None:  # the network's own scale counts, whatever VAE file was named
        read = replace(read, scale_factor=facts.scale_factor, is_inverted=facts.is_inverted)
    work.vae = read
    whole = request.part == "pipeline"
    inside = folder / "vae" if whole else folder
    if request.to == "sat":
        export_vae_sat(inside / (work.target.file_name or SAT_FILE), read, work.dtype)
    elif read.scale_factor is None:
        raise ConfigError(
            "the scale of the latents is not known: it is no part of these files",
            where=work.source.url,
            fix="name the model that the VAE is for: --base configs/<model>.yaml",
        )
    else:
        export_vae_diffusers(inside, read, work.dtype, request.max_shard_bytes)
    if not whole:
        return
    work.tell("copying the text encoder")
    text = work.source.text_encoder()
    if request.to == "sat":
        copy_text_encoder(text, folder / T5_FOLDER, apart=False)
        return
    copy_text_encoder(text, folder, apart=True)
    assert facts is not None
    assert work.network is not None
    assert work.network.config is not None
    write_index(folder, work.network.config, facts)


def _facts(work: _Work) -> PipelineFacts | None:
    """How the parts work together; None for a VAE alone of which no model file says it."""
    if work.network is None or work.network.config is None:
        return work.source.description.facts
    facts = work.source.facts(work.network.config)
    if work.request.scheduler is None:
        return facts
    return replace(facts, scheduler="ddim" if work.request.scheduler == "ddim" else "dpm")


def _verify(work: _Work, path: Path) -> None:
    """Compare what was written with what was read."""
    work.tell("reading back")
    if work.network is not None:
        inside = path if work.request.part == "transformer" else path / "transformer"
        work.report.verified["network"] = _verify_network(work, work.network, inside)
    if work.vae is not None:
        work.report.verified["vae"] = _verify_vae(work, work.vae, path)


def _verify_network(work: _Work, source: NetworkWeights, path: Path) -> Verdict:
    written = read_network(path, Told(), read_beside)
    expected: Mapping[str, Tensor] = source.tensors
    if work.request.to == "diffusers":
        assert source.config is not None
        expected = without_pairs(source.tensors, source.config)
    # A fixed table is computed on both sides, and diffusers keeps none in its files.
    names = [name for name in expected if name != "position.table" or _is_stored(work, source)]
    compared, difference = compare_tensors(
        {name: expected[name] for name in names},
        {name: t for name, t in written.tensors.items() if name in names or name not in expected},
        str(path),
    )
    work.tell("computing one forward of both")
    dtypes = {next(iter(t.values())).dtype for t in (source.tensors, written.tensors)}
    if written.is_pairs:
        assert source.lora is not None
        assert written.lora is not None
        what = "every pair on one input"
        outputs = (
            pairs_output(source.tensors, source.lora),
            pairs_output(written.tensors, written.lora),
        )
    else:
        assert source.config is not None
        assert written.config is not None
        what = "the network on one small clip"
        outputs = (
            network_output(source.tensors, source.config),
            network_output(written.tensors, written.config),
        )
    forward = check_forward(*outputs, dtypes, str(path))
    return Verdict(len(names), compared, difference, what, forward)


def _is_stored(work: _Work, source: NetworkWeights) -> bool:
    learnable = source.config is not None and source.config.position.learnable
    return learnable or work.request.to == "sat"


def _verify_vae(work: _Work, source: VaeWeights, path: Path) -> Verdict:
    written = read_vae(path)
    compared, difference = compare_tensors(source.tensors, written.tensors, str(path))
    work.tell("computing one clip of both VAEs")
    dtypes = {next(iter(t.values())).dtype for t in (source.tensors, written.tensors)}
    outputs = (
        vae_output(source.tensors, source.config),
        vae_output(written.tensors, written.config),
    )
    forward = check_forward(*outputs, dtypes, str(path))
    what = "one small clip, encoded and decoded"
    return Verdict(len(source.tensors), compared, difference, what, forward)
