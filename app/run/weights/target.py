"""Where converted weights go: a folder or one file, local or s3://.

Files are written to a staging folder and moved into place once all of them exist, `latest` and the
index of a pipeline last, so that a reader never takes half of a model for a whole one.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from app.conversion.pipeline import INDEX_FILE
from app.conversion.weights_file import SAT_TAG_FILE
from app.errors import UsageError
from app.storage.opening import is_remote, local_path, open_storage

FILE_ENDS = (".safetensors", ".pt")  # a target that ends so is a file, not a folder
LAST = (SAT_TAG_FILE, INDEX_FILE)  # they say that the rest is complete
# Names that we write. Older files of these names, left in the folder, would be mixed with the new.
_WEIGHTS = re.compile(
    r"latest|mp_rank_\d+_model_states\.pt|3d-vae\.pt|pytorch_lora_weights\.safetensors"
    r"|adapter_model\.safetensors|adapter_config\.json"
    r"|diffusion_pytorch_model(-\d+-of-\d+)?\.safetensors(\.index\.json)?|model_index\.json"
)
FOLDERS = ("", "1/", "transformer/", "transformer/1/", "vae/")  # of a target, which hold weights


@dataclass(slots=True)
class Destination:
    """A place to write to.

    Attributes:
        url: of the folder.
        file_name: of the one file, where the target names a file.
        overwrite: replace existing weights.
        keys: what was published, relative to the folder.
    """

    url: str
    file_name: str | None
    overwrite: bool
    keys: list[str] = field(default_factory=list)

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """An empty folder, on the disk of a local target; gone at the end.

        Raises:
            UsageError: the target already holds weights.
        """
        self._check_free()
        place = None
        if not is_remote(self.url):
            place = local_path(self.url).absolute().parent
            place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".convert-", dir=place) as folder:
            yield Path(folder)

    def publish(self, folder: Path, *, read_back: bool = False) -> list[str]:
        """Move every file of the staging folder into place; returns their URLs.

        Args:
            folder: the one that `staging` gave.
            read_back: download every object again and compare its digests.
        """
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        files.sort(key=lambda path: LAST.index(path.name) if path.name in LAST else -1)
        self.keys = [path.relative_to(folder).as_posix() for path in files]
        storage = open_storage(self.url)
        mine = {Path(key).parent for key in self.keys}
        stale = [key for key in self._weights() if Path(key).parent in mine]
        storage.delete([key for key in stale if Path(key).name in LAST])
        for path, key in zip(files, self.keys, strict=True):
            if is_remote(self.url):
                receipt = storage.upload(path, key)
                if read_back:
                    storage.download(key, path, receipt)
            else:
                target = local_path(self.url) / key
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, target)
        storage.delete([key for key in stale if key not in self.keys])
        return [f"{storage.url}/{key}" for key in self.keys]

    def _check_free(self) -> None:
        there = self._weights()
        if there and not self.overwrite:
            raise UsageError(
                f"the target already holds weights: {there[0]}",
                where=self.url,
                fix="name another folder, or replace them with --overwrite",
            )

    def _weights(self) -> list[str]:
        """Keys of weights of the names that we write, the one file if the target names one."""
        found = [f"{folder}{name}" for folder in FOLDERS for name in self._names(folder)]
        if self.file_name is not None:
            return [key for key in found if key == self.file_name]
        return [key for key in found if _WEIGHTS.fullmatch(Path(key).name)]

    def _names(self, folder: str) -> list[str]:
        """Files directly in a folder of the target."""
        if is_remote(self.url):
            entries = open_storage(self.url).list(folder)
            names = [entry.key[len(folder) :] for entry in entries]
            return [name for name in names if "/" not in name]
        place = local_path(self.url) / folder
        if not place.is_dir():
            return []
        return sorted(path.name for path in place.iterdir() if path.is_file())


def open_target(url: str, overwrite: bool) -> Destination:
    """The place that a URL names."""
    parent, slash, name = url.rstrip("/").rpartition("/")
    if name.endswith(FILE_ENDS):
        return Destination(parent if slash else ".", name, overwrite)
    return Destination(url.rstrip("/") or "/", None, overwrite)
