"""A pod as a local process: everything is taken from the manifest but what this table replaces.

| in the pod | here |
|---|---|
| the master's address and port | 127.0.0.1 and a free port |
| volume mounts (ConfigMap, emptyDir) | folders under a temporary root |
| weights in the image or on a volume | tiny ones, by path or by key=value overrides |

`localize` returns the processes and the table as it was applied, to be printed. What Kubernetes
itself does is done as well: Secrets become variables, the image has its variables and entry point,
and the operator's variables come last.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import app
from app.errors import ConfigError
from app.rehearsal.operator_environment import container_of, operator_environment, replica_of

Document = Mapping[str, Any]

ENTRYPOINT = ("cogvx", "launch")  # of the Dockerfile
LOOPBACK = "127.0.0.1"

# ENV lines of the Dockerfile, but for PATH; a test compares.
IMAGE_ENVIRONMENT = {
    "HOME": "/scratch/home",
    "USER": "cogvx",
    "XDG_CACHE_HOME": "/scratch/cache",
    "TRITON_CACHE_DIR": "/scratch/cache/triton",
    "TORCHINDUCTOR_CACHE_DIR": "/scratch/cache/inductor",
    "TORCH_EXTENSIONS_DIR": "/scratch/cache/torch_extensions",
    "HF_HOME": "/scratch/cache/huggingface",
    "WANDB_DIR": "/scratch/wandb",
    "WANDB_CACHE_DIR": "/scratch/cache/wandb",
    "WANDB_DATA_DIR": "/scratch/cache/wandb-data",
    "MPLCONFIGDIR": "/scratch/cache/matplotlib",
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    "PYTHONUNBUFFERED": "1",
}

# Variables of this machine that would affect a pod without being in its manifest.
_NOT_INHERITED = re.compile(
    r"^(PET_|TORCHELASTIC_|OMPI_|SLURM_|AWS_|S3_|COGVX_|WANDB_|KUBERNETES_|PYTHON|VIRTUAL_ENV)"
    r"|^(RANK|WORLD_SIZE|MASTER_(ADDR|PORT)|(LOCAL|GROUP|ROLE)_\w*(RANK|WORLD_SIZE|NAME))$"
)


@dataclass(frozen=True, slots=True)
class Substitution:
    """One row of the printed table."""

    what: str
    in_the_pod: str
    here: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Surroundings:
    """What a cluster and an image would provide."""

    root: Path  # temporary; each pod gets a folder below it
    master_port: int  # a free one
    secrets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # name -> key -> value
    weights: Mapping[str, Path] = field(default_factory=dict)  # path in the pod -> path here
    overrides: Sequence[str] = ()  # key=value, added last to the command line


@dataclass(frozen=True, slots=True)
class LocalProcess:
    """What to start for one pod."""

    pod: str
    argv: tuple[str, ...]
    environ: Mapping[str, str]
    folder: Path  # working directory; the pod's root


@dataclass(frozen=True, slots=True)
class LocalJob:
    """The processes of a job, master first, and the table that made them local."""

    processes: tuple[LocalProcess, ...]
    table: tuple[Substitution, ...]


def localize(documents: Sequence[Document], surroundings: Surroundings) -> LocalJob:
    """Turn the rendered objects of one release into local processes.

    Args:
        documents: one PyTorchJob and the ConfigMaps that it mounts.

    Raises:
        ConfigError: the job mounts or reads something that is not among the documents.
    """
    job = next(document for document in documents if document["kind"] == "PyTorchJob")
    processes = []
    table: dict[tuple[str, str], Substitution] = {}
    for pod, operator in operator_environment(job).items():
        made = _Pod(pod, replica_of(job, pod), documents, surroundings)
        processes.append(made.process(operator))
        for row in made.table(operator):
            table.setdefault((row.what, row.in_the_pod), row)
    return LocalJob(tuple(processes), tuple(table.values()))


class _Pod:
    """One pod on its way to a local process."""

    def __init__(
        self,
        name: str,
        replica: Document,
        documents: Sequence[Document],
        surroundings: Surroundings,
    ) -> None:
        self._name = name
        self._spec = replica["template"]["spec"]
        self._container = container_of(replica)
        self._documents = documents
        self._surroundings = surroundings
        self._folder = surroundings.root / name
        self._volumes = {volume["name"]: volume for volume in self._spec.get("volumes", [])}
        # /dev/shm exists on this machine too, and no path in the manifest refers to it.
        self._mounts = {
            mount["mountPath"].rstrip("/"): self._folder / mount["mountPath"].strip("/")
            for mount in self._container.get("volumeMounts", [])
            if mount["mountPath"].rstrip("/") != "/dev/shm"
        }

    def process(self, operator: Mapping[str, str]) -> LocalProcess:
        """Create the folders and mounted files; assemble command line and environment."""
        self._make_volumes()
        command = tuple(self._container.get("command", ENTRYPOINT))
        words = (*command, *self._container.get("args", ()))
        argv = (*(self._local(str(word)) for word in words), *self._surroundings.overrides)
        if argv[0] == ENTRYPOINT[0]:
            argv = (sys.executable, "-m", app.__name__, *argv[1:])
        environ = {key: self._local(value) for key, value in self._own_environment().items()}
        tmp = self._folder / "tmp"
        tmp.mkdir(parents=True, exist_ok=True)
        environ = {"TMPDIR": str(tmp), **environ, **operator}
        if "MASTER_ADDR" in operator:
            environ |= dict.fromkeys(("MASTER_ADDR", "PET_MASTER_ADDR"), LOOPBACK)
            port = str(self._surroundings.master_port)
            environ |= dict.fromkeys(("MASTER_PORT", "PET_MASTER_PORT"), port)
        return LocalProcess(self._name, argv, _inherited() | environ, self._folder)

    def table(self, operator: Mapping[str, str]) -> list[Substitution]:
        """The rows that were applied to this pod, with `<pod>` for its folder."""
        rows = []
        if "MASTER_ADDR" in operator:
            address = f"{operator['MASTER_ADDR']}:{operator['MASTER_PORT']}"
            here = f"{LOOPBACK}:{self._surroundings.master_port}"
            rows.append(Substitution("the master's address", address, here))
        for path in self._mounts:
            here = str(self._surroundings.root / "<pod>" / path.strip("/"))
            rows.append(Substitution("volume mount", path, here))
        for path, local in self._surroundings.weights.items():
            rows.append(Substitution("weights", path, str(local)))
        for override in self._surroundings.overrides:
            key, _, value = override.partition("=")
            rows.append(Substitution("weights", key, value))
        return rows

    def _make_volumes(self) -> None:
        for mount in self._container.get("volumeMounts", []):
            folder = self._mounts.get(mount["mountPath"].rstrip("/"))
            if folder is None:
                continue
            folder.mkdir(parents=True, exist_ok=True)
            volume = self._volumes[mount["name"]]
            if "configMap" in volume:
                data = self._config_map(volume["configMap"]["name"])
                for key, text in data.items():
                    (folder / key).write_text(self._local(text), encoding="utf-8")
            elif "emptyDir" not in volume:
                kind = next((key for key in volume if key != "name"), "nothing")
                raise self._missing(f"a volume of kind {kind} cannot be rehearsed", mount["name"])

    def _own_environment(self) -> dict[str, str]:
        """The image's variables, then envFrom, then env, as the kubelet puts them together."""
        environ = dict(IMAGE_ENVIRONMENT)
        for source in self._container.get("envFrom", []):
            prefix = source.get("prefix", "")
            if "secretRef" in source:
                found = self._secret(source["secretRef"]["name"])
            else:
                found = self._config_map(source["configMapRef"]["name"])
            environ |= {prefix + key: value for key, value in found.items()}
        for entry in self._container.get("env", []):
            value = self._value(entry)
            if value is not None:
                environ[entry["name"]] = value
        return environ

    def _value(self, entry: Mapping[str, Any]) -> str | None:
        source = entry.get("valueFrom")
        if source is None:
            return str(entry.get("value", ""))
        if "fieldRef" in source:
            return {"metadata.name": self._name}.get(source["fieldRef"]["fieldPath"], "")
        secret = "secretKeyRef" in source
        reference = source["secretKeyRef"] if secret else source["configMapKeyRef"]
        name, key = reference["name"], reference["key"]
        if reference.get("optional") and (secret and name not in self._surroundings.secrets):
            return None
        found = self._secret(name) if secret else self._config_map(name)
        if key in found:
            return found[key]
        if reference.get("optional"):
            return None
        raise self._missing(f"no key {key} in {name}", entry["name"])

    def _secret(self, name: str) -> Mapping[str, str]:
        if name not in self._surroundings.secrets:
            raise self._missing(f"no Secret {name}", "env")
        return self._surroundings.secrets[name]

    def _config_map(self, name: str) -> Mapping[str, str]:
        for document in self._documents:
            if document["kind"] == "ConfigMap" and document["metadata"]["name"] == name:
                data: Mapping[str, str] = document.get("data", {})
                return data
        raise self._missing(f"no ConfigMap {name}", "volumes")

    def _missing(self, what: str, where: str) -> ConfigError:
        return ConfigError(
            what,
            where=f"pod {self._name}: {where}",
            fix="render it with the job, or pass it to the rehearsal",
        )

    def _local(self, text: str) -> str:
        """Replace the pod's paths in a word, a variable or a file; local paths stay."""
        weights = self._surroundings.weights
        here = {str(path): path for path in (self._surroundings.root, *weights.values())}
        paths = {**self._mounts, **weights, **here}
        # In one pass, since a replacement may itself begin like a mount (/tmp); longest first.
        names = "|".join(re.escape(path) for path in sorted(paths, key=len, reverse=True))
        pattern = rf"(?<![\w./-])({names})(?![\w.-])"
        return re.sub(pattern, lambda match: str(paths[match[1]]), text)


def _inherited() -> dict[str, str]:
    """The variables of this machine that do not affect a pod, and the path of this program."""
    kept = {key: value for key, value in os.environ.items() if not _NOT_INHERITED.search(key)}
    return kept | {"PYTHONPATH": str(Path(app.__file__).parents[1])}
