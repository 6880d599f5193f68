"""The parts of a model in a source: network, VAE, text encoder; found, and checked before upload.

The files are uploaded as they are: training reads every one of these layouts.
"""

from __future__ import annotations

import shutil
import stat
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from app.checkpoint.tensor_file import open_tensors
from app.config.schema.model import DiTConfig
from app.conversion.pickle_file import read_state_dict
from app.conversion.pipeline import check_scheduler_near
from app.conversion.source import LoraWeights, WeightsOverrides, read_network_weights
from app.conversion.vae import SAT_FILE as VAE_FILE
from app.conversion.vae import read_vae
from app.conversion.weights_file import SAT_TAG_FILE
from app.errors import InputMissingError, WeightsError
from app.run.weights.description import read_sidecar

PARTS = ("transformer", "vae", "t5")
MOST_LISTED = 5
_T5_DECODER = ("decoder.", "lm_head.")  # of a whole T5


@dataclass(frozen=True, slots=True)
class ModelPart:
    """One part of a model, checked.

    Attributes:
        name: "transformer", "vae" or "t5".
        files: key below the part's folder -> local file.
        entry: what a configuration names: "" for the folder, or one file in it.
        facts: what it is, for messages and for the manifest.
    """

    name: str
    files: Mapping[str, Path]
    entry: str
    facts: Mapping[str, object]


def find_parts(source: Path | None, given: Mapping[str, Path]) -> dict[str, Path]:
    """Where each part is: as given, or below `source` by the names that releases use.

    Args:
        source: folder or file; None: only what is given.
        given: by part.

    Raises:
        InputMissingError: nothing was found.
    """
    found = dict(given)
    if source is not None:
        for name, place in _candidates(source):
            found.setdefault(name, place)
    if not found:
        raise InputMissingError(
            "found no part of a model: no transformer, VAE or T5",
            where=str(source),
            fix="name them: --transformer, --vae, --t5",
        )
    return {name: found[name] for name in PARTS if name in found}


def _candidates(source: Path) -> list[tuple[str, Path]]:
    if source.is_file():
        return [("vae" if source.name == VAE_FILE else "transformer", source)]
    found = []
    # A zip often holds one folder with everything in it.
    inside = [path for path in sorted(source.iterdir()) if not path.name.startswith((".", "__"))]
    places = [source, *(path for path in inside if path.is_dir() and len(inside) == 1)]
    for place in places:
        if (place / "transformer").is_dir():
            found.append(("transformer", place / "transformer"))
        elif (place / SAT_TAG_FILE).is_file() or _is_diffusers_network(place):
            found.append(("transformer", place))
        for vae in (place / "vae" / VAE_FILE, place / VAE_FILE, place / "vae"):
            if vae.exists():
                found.append(("vae", vae))
        if (place / "text_encoder").is_dir() and (place / "tokenizer").is_dir():
            found.append(("t5", place))
        found += [("t5", p) for p in (place, *sorted(place.iterdir())) if _is_t5(p)]
    return found


def _is_diffusers_network(folder: Path) -> bool:
    return any(folder.glob("diffusion_pytorch_model*.safetensors")) and not any(
        folder.glob("model_index.json")
    )


def _is_t5(path: Path) -> bool:
    return (path / "spiece.model").is_file() and (path / "config.json").is_file()


def checked_transformer(path: Path, config: DiTConfig | None) -> tuple[ModelPart, DiTConfig]:
    """A network with every tensor present and in the right shape.

    Raises:
        WeightsError: it is incomplete, belongs to another model, or lies in a pipeline whose
            scheduler is of another kind.
        ConfigError: its sizes are not known.
    """
    check_scheduler_near(path)
    read = read_network_weights(path, WeightsOverrides(config), read_sidecar)
    if isinstance(read, LoraWeights):
        raise WeightsError(
            "this is a LoRA, not a whole network",
            where=str(path),
            fix="put the network that it was trained on; a LoRA is used with --lora",
        )
    sizes = {
        name: getattr(read.network, name)
        for name in ("num_layers", "hidden_size", "in_channels", "out_channels")
    }
    dtype = str(next(iter(read.tensors.values())).dtype).removeprefix("torch.")
    facts = {"layout": read.kind, "tensors": len(read.tensors), "dtype": dtype, **sizes}
    entry = path.name if path.is_file() else ""
    return ModelPart("transformer", _files(path, read.kind == "sat"), entry, facts), read.network


def checked_vae(path: Path) -> ModelPart:
    """A VAE with every tensor present; raises WeightsError."""
    read = read_vae(path)
    layout = "sat" if path.is_file() else "diffusers"
    facts = {"layout": layout, "tensors": len(read.tensors)}
    return ModelPart("vae", _files(path, False), path.name if path.is_file() else "", facts)


def checked_t5(path: Path, width: int | None) -> ModelPart:
    """A text encoder with its tokenizer, in one folder, or in two as in a pipeline.

    Args:
        width: of the embeddings that the network takes; None: any.

    Raises:
        WeightsError: tensors are missing or have the wrong shape, or the width differs.
        InputMissingError: files are missing.
    """
    # transformers takes seconds
    from app.models.text.t5 import check_vocabulary, encoder_shapes, load_tokenizer

    wanted = encoder_shapes(path)
    check_vocabulary(path, len(load_tokenizer(path)), wanted["shared.weight"][0])
    apart = (path / "text_encoder").is_dir()
    folder = path / "text_encoder" if apart else path
    found = _t5_shapes(folder)
    wrong = [name for name, shape in wanted.items() if found.get(name) != shape]
    extra = [n for n in found if n not in wanted and not n.startswith(_T5_DECODER)]
    # Tied to another tensor, and left out by some writers.
    wrong = [name for name in wrong if name not in ("encoder.embed_tokens.weight",)]
    extra = [name for name in extra if name != "encoder.embed_tokens.weight"]
    if wrong or extra:
        names = ", ".join((wrong + extra)[:MOST_LISTED])
        raise WeightsError(
            f"tensors of the T5 encoder: {len(wrong)} missing or of the wrong shape, "
            f"{len(extra)} unexpected ({names})",
            where=str(folder),
            fix="copy the whole folder of the text encoder again",
        )
    own = wanted["shared.weight"][1]
    if width is not None and own != width:
        raise WeightsError(
            f"this T5 gives embeddings of width {own}, and the network takes {width}",
            where=str(path),
            fix="use the text encoder of the released model (T5 v1.1 XXL: 4096)",
        )
    files: dict[str, Path] = {}
    for place in (path / "text_encoder", path / "tokenizer") if apart else (path,):
        files |= {f"{place.name}/{k}" if apart else k: p for k, p in _files(place, False).items()}
    return ModelPart("t5", files, "", {"tensors": len(wanted), "width": own})


def _t5_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    safetensors = sorted(folder.glob("*.safetensors"))
    for path in safetensors:
        with open_tensors(path) as file:
            shapes |= {name: tuple(file.shape(name)) for name in file.names()}
    if not safetensors:
        for path in sorted(folder.glob("*.bin")):
            shapes |= {name: tuple(t.shape) for name, t in read_state_dict(path).items()}
    return shapes


def _files(path: Path, is_sat: bool) -> dict[str, Path]:
    """Files of a part; of a SAT folder only the checkpoint that `latest` names."""
    if path.is_file():
        return {path.name: path}
    kept = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
    files = {p.relative_to(path).as_posix(): p for p in kept}
    tag = path / SAT_TAG_FILE
    if is_sat and tag.is_file():
        inside = f"{tag.read_text().strip()}/"
        files = {k: p for k, p in files.items() if "/" not in k or k.startswith(inside)}
    return files


def unzipped(path: Path, folder: Path) -> Path:
    """Unpack a zip into `folder`, if it fits on the disk; returns `folder`.

    Raises:
        WeightsError: it is damaged, or a name in it points outside the folder.
        InputMissingError: the disk is too small.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(archive, path)
            need, free = sum(m.file_size for m in archive.infolist()), shutil.disk_usage(folder)
            if need > free.free:
                raise InputMissingError(
                    f"unpacking needs {need} bytes, and {free.free} are free",
                    where=str(folder),
                    fix="set TMPDIR to a larger disk, or unpack the zip yourself",
                )
            archive.extractall(folder)
    except zipfile.BadZipFile as cause:
        raise WeightsError(
            f"the zip is damaged ({cause})", where=str(path), fix="download it again"
        ) from cause
    return folder


def _check_members(archive: zipfile.ZipFile, path: Path) -> None:
    for member in archive.infolist():
        name = PurePosixPath(member.filename.replace("\\", "/"))
        is_link = stat.S_ISLNK(member.external_attr >> 16)
        if name.is_absolute() or ".." in name.parts or is_link:
            raise WeightsError(
                f"a name in this zip points outside it: {member.filename!r}",
                where=str(path),
                fix="do not trust this file; download the released one",
            )
