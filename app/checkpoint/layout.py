"""Keys of everything that a run writes, below `<save>/<run id>/`.

Numbers are zero-padded, so that the order of bytes is the order of time. No key is a folder of
another key: some servers keep objects as files. No torch here: the launcher reads this too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from app.storage.objects import check_own_key

RUN = "run.json"
COMPLETE = "complete.json"
PROGRESS = "progress.json"
ATTEMPTS = "attempts/"
CHECKPOINTS = "checkpoints/"
SAMPLES = "samples/"
METRICS = "metrics/"
QUARANTINE = "quarantine/"
EXPORT = "export/"

MANIFEST = "manifest.json"
STATE = "state.json"

# Kinds of values of a parameter.
WEIGHT_KINDS = ("master", "ema")
MOMENT_KINDS = ("exp_avg", "exp_avg_sq")
KINDS = (*WEIGHT_KINDS, *MOMENT_KINDS)

# The name of a file inside a checkpoint; it is joined below the checkpoint's folder.
FILE_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_CHECKPOINT = re.compile(r"step-([0-9]{10})\.([0-9]{6})")
_ATTEMPT = re.compile(r"([0-9]{6})-([0-9a-f]{8})")
_OF_ATTEMPT = (
    re.compile(r"checkpoints/step-[0-9]{10}\.([0-9]{6})/"),
    re.compile(r"(?:attempts|config|metrics|quarantine|logs)/([0-9]{6})-"),
)


@dataclass(frozen=True, order=True, slots=True)
class CheckpointRef:
    """One checkpoint of a run; sorts by (attempt, step)."""

    attempt: int
    step: int

    @property
    def name(self) -> str:
        """Name of its folder, e.g. step-0000001000.000007."""
        return f"step-{self.step:010}.{self.attempt:06}"

    @property
    def folder(self) -> str:
        """Key prefix of its files, without a slash at its end."""
        return CHECKPOINTS + self.name

    @property
    def manifest(self) -> str:
        """Key of its manifest: complete when this exists."""
        return f"{self.folder}/{MANIFEST}"

    def file(self, name: str) -> str:
        """Key of one of its files."""
        assert FILE_NAME.fullmatch(name), name
        return f"{self.folder}/{name}"

    @classmethod
    def parse(cls, name: str) -> CheckpointRef | None:
        """The checkpoint of a folder's name; None for any other name."""
        match = _CHECKPOINT.fullmatch(name)
        return cls(attempt=int(match[2]), step=int(match[1])) if match else None


def run_url(save: str, run_id: str) -> str:
    """URL of the folder of one run."""
    return f"{save.rstrip('/')}/{check_own_key(run_id, 'run id')}"


def attempt_key(number: int, owner: str) -> str:
    """Record of one start; `owner` is 8 hexadecimal digits, new for each start."""
    return f"{ATTEMPTS}{number:06}-{owner}.json"


def parse_attempt_key(key: str) -> tuple[int, str] | None:
    """Number and owner of an attempt's record; None for any other key."""
    match = _ATTEMPT.fullmatch(key.removeprefix(ATTEMPTS).removesuffix(".json"))
    return (int(match[1]), match[2]) if match else None


def config_key(number: int, owner: str) -> str:
    """The merged configuration of one attempt, secrets masked."""
    return f"config/{number:06}-{owner}.yaml"


def weights_file(rank: int, world_size: int, cut: int) -> str:
    """Master weights and averages of a rank; `cut` numbers its files."""
    return _tensors("weights", rank, world_size, cut)


def optimizer_file(rank: int, world_size: int, cut: int) -> str:
    """Optimizer moments of a rank; `cut` numbers its files."""
    return _tensors("optim", rank, world_size, cut)


def rng_file(rank: int) -> str:
    """States of a rank's global random generators."""
    return f"rng-{rank:04}.json"


def samples_folder(step: int) -> str:
    """Key prefix of the videos sampled after a step."""
    return f"{SAMPLES}step-{step:010}/"


def samples_index_key(step: int) -> str:
    """What the sampled videos of a step are: prompts, seeds, settings."""
    return f"{samples_folder(step)}samples.json"


def quarantine_key(attempt: int, rank: int) -> str:
    """Bad samples that a rank found."""
    return f"{QUARANTINE}{attempt:06}-r{rank:04}.jsonl"


def log_key(attempt: int, rank: int) -> str:
    """Log of a rank."""
    return f"logs/{attempt:06}-r{rank:04}.txt"


def export_folder(step: int) -> str:
    """Key prefix of the weights exported after a step."""
    return f"{EXPORT}step-{step:010}/"


def attempt_of_key(key: str) -> int | None:
    """Number of the attempt that writes a key; None when the key does not tell."""
    for pattern in _OF_ATTEMPT:
        match = pattern.match(key)
        if match:
            return int(match[1])
    return None


def _tensors(kind: str, rank: int, world_size: int, cut: int) -> str:
    # A rank does not know how many files the others have, so the total is that of the ranks.
    part = f"-{cut:03}" if cut else ""
    return f"{kind}-{rank:05}-of-{world_size:05}{part}.safetensors"
