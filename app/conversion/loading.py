"""Load weights into a network, strictly: every tensor of the network from the file, or an error."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from app.conversion.lora import peft_scale, stored_scale
from app.conversion.misfit import Shapes, check_fit, shapes_of
from app.conversion.sat import OUTSIDE
from app.conversion.shared_weights import ReadableWeights, open_for_all
from app.conversion.vae import vae_tensors
from app.conversion.weights_file import Kind, open_weights
from app.errors import WeightsError
from app.models.dit.parallel import own_part, whole_shape
from app.models.dit.transformer import DiffusionTransformer
from app.models.lora.inject import reset_lora
from app.models.lora.linear import is_pair, pairs_among

# What one model has and another has not: image-to-video starts from text-to-video weights so.
OPTIONAL_MODULES = ("position.", "ofs_embed.")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadReport:
    """What was loaded, for the log."""

    where: str
    kind: Kind
    num_tensors: int
    lora: str  # "loaded", "initial" (the file has none) or "none" (the network has none)
    computed: tuple[str, ...]  # tables made from the config instead of read
    left_out: int  # tensors of the file that belong to the text encoder, the VAE and so on


def load_network_weights(
    network: DiffusionTransformer,
    path: Path | Callable[[], Path],
    device: torch.device | str = "cpu",
    *,
    force: bool = False,
) -> LoadReport:
    """Fill a network from a file or folder of any layout (see `open_weights`).

    Values go straight into the dtype of the network; parameters on the meta device are allocated
    on `device`. A base file in a LoRA network leaves the pairs at their start. A rank that shares
    the network with others takes its parts of the whole tensors.

    Args:
        network: to fill.
        path: of the weights; a function that finds them is called on rank 0 alone, which reads
            them for all ranks of the process group (`open_for_all`).
        device: for parameters on the meta device.
        force: modules that only some models have (learned positions, ofs) and that the file lacks
            altogether keep their start, with a warning; all others stay strict.

    Raises:
        WeightsError: a tensor is missing, unexpected, misshaped or not finite; the message names
            the cause.
        InputMissingError: there is no such file.
    """
    group = network.group
    with (
        open_weights(path) if isinstance(path, Path) else open_for_all(path, network.dtype) as file
    ):
        outline = file.our_outline()
        computed = _to_compute(network, outline)
        for name in computed:
            outline.pop(name, None)
        wanted = {
            name: whole_shape(name, parameter.shape, group)
            for name, parameter in network.named_parameters()
            if name not in computed
        }
        has_pairs = any(is_pair(name) for name in outline)
        if not has_pairs:
            wanted = {name: shape for name, shape in wanted.items() if not is_pair(name)}
        if force:
            wanted = _without_absent_modules(wanted, outline, file.where)
            _check_allocated(network, wanted)
        check_fit(wanted, shapes_of(outline), file.where)
        _check_lora_scale(network, file)
        tensors = file.our_tensors()
        ours = ((n, own_part(n, t, group)) for n, t in tensors if n in wanted)
        _check_finite(_fill(network, ours, device), len(wanted), file.where)
        for name, tensor in computed.items():
            _fill(network, [(name, tensor)], device)
        lora = "none" if network.config.lora is None else "loaded" if has_pairs else "initial"
        if lora == "initial":
            _start_pairs(network, device)
        left_out = sum(name.startswith(OUTSIDE) for name in file.names)
    return LoadReport(file.where, file.kind, len(wanted), lora, tuple(computed), left_out)


def load_lora_weights(network: DiffusionTransformer, path: Path | Callable[[], Path]) -> LoadReport:
    """Fill the LoRA pairs of a network from a PEFT file, or any file with pairs; the rest stays.

    Where the file says another alpha / r than the config, B is scaled so that the result is the
    file's.

    Args:
        network: to fill; on a rank that shares it with others, its part.
        path: of the file; a function that finds it is called on rank 0 alone (`open_for_all`).

    Raises:
        WeightsError: a pair is missing, unexpected or misshaped, or the network has no pairs.
    """
    group = network.group
    pairs = pairs_among(dict(network.named_parameters()))
    wanted = {name: whole_shape(name, pair.shape, group) for name, pair in pairs.items()}
    with (
        open_weights(path) if isinstance(path, Path) else open_for_all(path, network.dtype) as file
    ):
        outline = pairs_among(file.our_outline())
        if not outline:
            raise WeightsError(
                "the file holds no LoRA pairs",
                where=file.where,
                fix="give it as the base weights instead (load)",
            )
        check_fit(wanted, shapes_of(outline), file.where)
        lora, factor = network.config.lora, 1.0
        if file.kind == "peft" and lora is not None:
            scale = peft_scale(file.metadata, lora.rank, file.where)
            factor = scale / (lora.alpha / lora.rank)
        else:
            _check_lora_scale(network, file)
        scaled = (
            (n, t.float() * factor if factor != 1.0 and n.endswith(".lora_b") else t)
            for n, t in file.our_tensors()
            if n in wanted
        )
        own = ((n, own_part(n, t, group)) for n, t in scaled)
        _check_finite(_fill(network, own, "cpu"), len(wanted), file.where)
        left_out = sum(name.startswith(OUTSIDE) for name in file.names)
    return LoadReport(file.where, file.kind, len(wanted), "loaded", (), left_out)


def load_vae_weights(
    vae: nn.Module,
    path: Path,
    ignore_keys: tuple[str, ...] = (),
    device: torch.device | str = "cpu",
) -> int:
    """Fill the VAE from 3d-vae.pt, a training checkpoint that holds it, or a diffusers VAE folder.

    Args:
        vae: whose parameter names are those of 3d-vae.pt.
        path: a file or a diffusers folder.
        ignore_keys: prefixes of names in the file that are left out (the discriminator: `loss`).
        device: for parameters on the meta device.

    Returns:
        Number of tensors loaded.

    Raises:
        WeightsError: a tensor is missing, unexpected or misshaped.
    """
    inside = path / "vae"
    with open_weights(inside if inside.is_dir() else path) as file:
        wanted = shapes_of(dict(vae.named_parameters()))
        found = shapes_of(dict(vae_tensors(file, file.outline, ignore_keys)))
        check_fit(wanted, found, file.where, what="the VAE", fix=_vae_cause(found))
        bad = _fill(vae, vae_tensors(file, file.read, ignore_keys), device)
        _check_finite(bad, len(wanted), file.where)
    return len(wanted)


def _vae_cause(names: Iterable[str]) -> str:
    if any(name.startswith("loss.") for name in names):
        return (
            "the file holds the discriminator too: set first_stage_config.params.ignore_keys "
            "to [loss]"
        )
    return "ckpt_path must name the VAE (3d-vae.pt) that encoder_config and decoder_config describe"


def _without_absent_modules(
    wanted: dict[str, tuple[int, ...]], outline: Mapping[str, Tensor], where: str
) -> dict[str, tuple[int, ...]]:
    """`wanted` without the optional modules that the file has nothing of."""
    absent = tuple(
        module for module in OPTIONAL_MODULES if not any(n.startswith(module) for n in outline)
    )
    left = {name: shape for name, shape in wanted.items() if not name.startswith(absent)}
    if len(left) < len(wanted):
        names = sorted(set(wanted) - set(left))
        log.warning("weights keep their start (force_train)", extra={"names": names, "path": where})
    return left


def _check_allocated(network: DiffusionTransformer, wanted: Shapes) -> None:
    """What keeps its start must have one: only a network with memory can be loaded in part."""
    computed = network.computed_parameters()
    kept = (n for n, p in network.named_parameters() if p.is_meta and n not in wanted)
    assert all(is_pair(name) or name in computed for name in kept), "give it memory before"


def _to_compute(network: DiffusionTransformer, outline: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fixed tables that the file lacks, or has in another size than the config."""
    shapes = shapes_of(outline)
    return {
        name: tensor
        for name, tensor in network.computed_parameters().items()
        if shapes.get(name) != tuple(tensor.shape)
    }


def _check_lora_scale(network: DiffusionTransformer, file: ReadableWeights) -> None:
    """Pairs mean nothing without their scale: refuse ours of another one."""
    stored = stored_scale(file.metadata, file.where)
    lora = network.config.lora
    if stored is not None and lora is not None and stored != lora.alpha / lora.rank:
        raise WeightsError(
            f"the pairs were trained with alpha / r = {stored:g}, the config says lora_alpha "
            f"{lora.alpha:g} and r {lora.rank}",
            where=file.where,
            fix="set lora_config.params to the values of the run that made the file",
        )


@torch.no_grad()
def _fill(
    network: nn.Module, tensors: Iterable[tuple[str, Tensor]], device: torch.device | str
) -> list[str]:
    """Copy values into parameters, one at a time; meta ones are allocated in their own dtype.

    Returns:
        Names of those with a NaN or an infinity.
    """
    bad: list[str] = []
    for name, tensor in tensors:
        parent, _, child = name.rpartition(".")
        module = network.get_submodule(parent)
        parameter = module.get_parameter(child)
        if parameter.is_meta:
            # A copy even where nothing is cast: the file's mapping must not stay in use.
            values = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
            values.copy_(tensor)
            new = nn.Parameter(values, requires_grad=parameter.requires_grad)
            module.register_parameter(child, new)
        else:
            values = parameter.copy_(tensor)
        if not bool(values.isfinite().all()):
            bad.append(name)
    return bad


def _check_finite(bad: list[str], count: int, where: str) -> None:
    if bad:
        raise WeightsError(
            f"{len(bad)} of {count} tensors hold NaN or infinity; the first: {', '.join(bad[:3])}",
            where=where,
            fix="fetch or convert the weights again; values beyond 65504 do not fit fp16, use bf16",
        )


def _start_pairs(network: DiffusionTransformer, device: torch.device | str) -> None:
    """Allocate pairs that are still on the meta device and give them their starting values."""
    pairs = [(name, p) for name, p in network.named_parameters() if is_pair(name) and p.is_meta]
    if pairs:
        _fill(network, ((name, torch.zeros(p.shape)) for name, p in pairs), device)
        reset_lora(network)
