"""Open a weight file or folder of any layout: SAT, diffusers, PEFT, our own.

Tensors are read one by one when needed: pickles and safetensors are memory-mapped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from app.checkpoint.tensor_file import TensorReader, open_tensors
from app.conversion import lora
from app.conversion.diffusers import from_diffusers
from app.conversion.pickle_file import read_state_dict
from app.conversion.sat import from_sat
from app.conversion.sat_files import ShardedTensors
from app.errors import InputMissingError, WeightsError

Kind = Literal["sat", "diffusers", "peft", "ours"]

SAT_TAG_FILE = "latest"
SAT_RANK_FILE = "mp_rank_{:02d}_model_states.pt"
INDEX_SUFFIX = ".safetensors.index.json"  # diffusers' and transformers' list of shards


@dataclass(frozen=True)
class WeightsFile:
    """An open file: names as they are in it, and how to read one tensor."""

    where: str  # for errors
    names: tuple[str, ...]
    read: Callable[[str], Tensor]
    outline: Callable[[str], Tensor]  # the tensor on the meta device: shape and dtype only
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> Kind:
        return kind_of(self.names)

    def our_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors of the network by our names.

        Raises:
            WeightsError: the file does not hold such a network.
        """
        return self._converted(self.read)

    def our_outline(self) -> dict[str, Tensor]:
        """The same on the meta device, without reading any values."""
        return dict(self._converted(self.outline))

    def _converted(self, read: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        match self.kind:
            case "sat":
                return from_sat(self.names, read, self.where)
            case "diffusers":
                return from_diffusers(self.names, read, self.where)
            case "peft":
                return lora.from_peft(self.names, read, self.where)
            case "ours":
                return ((name, read(name)) for name in self.names)


def kind_of(names: Iterable[str]) -> Kind:
    """The layout that the names belong to."""
    for name in names:
        if lora.is_pair_name(name):
            return "peft"
        if name.startswith(("transformer_blocks.", "patch_embed.", "time_embedding.")):
            return "diffusers"
        if name.startswith(("blocks.", "patch.video.")):
            return "ours"
    return "sat"


@contextmanager
def open_weights(path: Path) -> Iterator[WeightsFile]:
    """Open a file, or the weights in a folder.

    A folder may be a SAT checkpoint (`latest`, or one of its tag folders), a diffusers model or
    pipeline, an exported LoRA, or hold a single safetensors file.

    Raises:
        InputMissingError: there is nothing to open.
        WeightsError: the content is not what the name promises.
    """
    files = list(_files_of(path))
    where = str(path)
    with ExitStack() as stack:
        if files[0].suffix == ".safetensors":
            readers = [stack.enter_context(open_tensors(file)) for file in files]
            yield _from_safetensors(readers, where, files[0].parent)
        else:
            yield _from_pickles([read_state_dict(file) for file in files], where, files[0].parent)


def _from_safetensors(readers: list[TensorReader], where: str, folder: Path) -> WeightsFile:
    owner = {name: reader for reader in readers for name in reader.names()}

    def outline(name: str) -> Tensor:
        reader = owner[name]
        return torch.empty(reader.shape(name), dtype=reader.dtype(name), device="meta")

    metadata = dict(readers[0].metadata) if len(readers) == 1 else {}
    metadata = _peft_metadata(owner, folder) | metadata
    return WeightsFile(where, tuple(owner), lambda name: owner[name].read(name), outline, metadata)


def _from_pickles(shards: list[dict[str, Tensor]], where: str, folder: Path) -> WeightsFile:
    whole = ShardedTensors(shards, where)
    outlines = ShardedTensors([_outlines(shard) for shard in shards], where)
    metadata = _peft_metadata(whole, folder)
    return WeightsFile(where, tuple(whole), whole.__getitem__, outlines.__getitem__, metadata)


def _peft_metadata(names: Iterable[str], folder: Path) -> dict[str, str]:
    """What the config of PEFT in the folder of pairs says, as diffusers writes it into a file."""
    described = read_json(folder / lora.PEFT_CONFIG)
    if described is None or not any(lora.is_pair_name(name) for name in names):
        return {}
    packed = {f"{lora.COMPONENT}.{key}": value for key, value in described.items()}
    return {lora.METADATA_KEY: json.dumps(packed)}


def _outlines(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}


def _files_of(path: Path) -> list[Path]:
    """The files to read together: one, or all shards."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputMissingError("there are no such weights", where=str(path), fix="check the path")
    if (path / SAT_TAG_FILE).is_file():
        return _sat_files(path / _tag(path))
    if (path / SAT_RANK_FILE.format(0)).is_file():
        return _sat_files(path)
    if (path / "transformer").is_dir():  # a whole diffusers pipeline, or released SAT folders
        return _files_of(path / "transformer")
    index = sorted(path.glob(f"*{INDEX_SUFFIX}"))
    if index:
        return _indexed(index[0])
    single = sorted(path.glob("*.safetensors")) or sorted(path.glob("*.bin"))
    if {file.name for file in single} == {lora.FILE_NAME, lora.PEFT_FILE}:
        return [path / lora.FILE_NAME]  # our export: both hold the same pairs
    if len(single) == 1:
        return single
    raise InputMissingError(
        f"{len(single)} safetensors files and no {SAT_TAG_FILE}, {SAT_RANK_FILE.format(0)} or "
        "index in this folder",
        where=str(path),
        fix="name the weight file itself, or a SAT or diffusers folder; the weights of a run come "
        "from cogvx export, and its LoRA goes on with --lora-from",
    )


def read_json(path: Path) -> dict[str, Any] | None:
    """The mapping in a JSON file; None if the file does not exist.

    Raises:
        WeightsError: it is not a JSON mapping.
    """
    return json_mapping(path.read_bytes(), str(path)) if path.is_file() else None


def json_mapping(text: bytes, where: str) -> dict[str, Any]:
    """The mapping in a JSON text; WeightsError if it is not one."""
    try:
        content = json.loads(text)
    except ValueError as cause:
        raise WeightsError(
            f"the file does not parse ({cause})", where=where, fix="fetch it again"
        ) from cause
    if not isinstance(content, dict):
        raise WeightsError("the file does not hold a mapping", where=where, fix="fetch it again")
    return content


def _tag(path: Path) -> str:
    place = path / SAT_TAG_FILE
    return sat_tag(place.read_bytes().decode(errors="replace"), str(place))


def sat_tag(content: str, where: str) -> str:
    """The folder that the content of `latest` names: a step, or the word release.

    Raises:
        WeightsError: it is neither.
    """
    tag = content.strip()
    if tag != "release" and not (tag.isascii() and tag.isdigit() and int(tag) > 0):
        raise WeightsError(
            f"{SAT_TAG_FILE} says {tag!r}, which is neither a positive number nor 'release'",
            where=where,
            fix="an interrupted save leaves this behind: write the number of a complete folder "
            "into it, or name that folder itself",
        )
    return tag


def _sat_files(folder: Path) -> list[Path]:
    """Files of all tensor-parallel ranks, in order."""
    files: list[Path] = []
    while (file := folder / SAT_RANK_FILE.format(len(files))).is_file():
        files.append(file)
    if len(files) < len(list(folder.glob("mp_rank_*_model_states.pt"))) or not files:
        raise InputMissingError(
            f"there is no {SAT_RANK_FILE.format(len(files))}",
            where=str(folder),
            fix="fetch the whole checkpoint folder",
        )
    return files


def _indexed(index: Path) -> list[Path]:
    """Shards that an index lists, in order of their names."""
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as cause:
        raise WeightsError(
            f"the index does not parse ({cause!r})", where=str(index), fix="fetch it again"
        ) from cause
    elsewhere = [name for name in names if Path(name).name != name]
    if elsewhere:
        raise WeightsError(
            f"the index names a file outside of its folder: {elsewhere[0]!r}",
            where=str(index),
            fix="fetch it again, from a source that you trust",
        )
    return [index.parent / name for name in names]
