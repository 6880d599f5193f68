"""Tiny runs of the real program: inputs made once, ranks as child processes, results read back.

A `TinyWorld` is an S3 server with clips as shards and tiny weights in the real file formats. A run
is the command line that a user types, in one process or as a gang of ranks, and always ends:
processes are waited for with a deadline, and killed with their trees when a test leaves.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.checkpoint.catalog import find_newest
from app.checkpoint.reader import open_checkpoint
from app.data.pack import PackRules, pack
from app.rehearsal.clips import make_clips
from app.rehearsal.embedded_s3 import EmbeddedS3
from app.rehearsal.records import read_metrics
from app.storage.local import LocalStorage
from app.storage.objects import Storage
from tests.support.configs import CONFIGS, ROOT
from tests.support.s3_servers import set_environment
from tests.support.warm_python import warm_python

CLIP_SIZE = (32, 64)  # rows, columns; what configs/tiny/ cuts
CLIPS, SHARD_BYTES = 12, 40_000  # several shards; a few steps go more than once round
VALID_CLIPS = 3
RUN_S = 240.0  # of one process, on a machine that does something else too

# What says who a process is, or where its storage lies: a child gets it from the test alone.
_OURS = re.compile(
    r"^(PET_|TORCHELASTIC_|OMPI_|AWS_|S3_|COGVX_|WANDB_)"
    r"|^(RANK|WORLD_SIZE|MASTER_(ADDR|PORT)|(LOCAL|GROUP|ROLE)_\w*(RANK|WORLD_SIZE|NAME))$"
)


@dataclass(frozen=True)
class TinyWorld:
    """Buckets `clips`, `weights` and `runs` on a server, and the same clips as a folder."""

    folder: Path
    server: EmbeddedS3

    @property
    def clips(self) -> Path:
        """A folder of videos/ and labels/."""
        return self.folder / "clips/train"

    @property
    def weights(self) -> Path:
        """t5/, vae/3d-vae.pt and transformer/, as they lie on the server's disk."""
        return self.server.folder / "weights/tiny"

    def storage(self, run_id: str) -> LocalStorage:
        """A run's folder, as it lies on the server's disk."""
        return LocalStorage(self.server.folder / "runs" / run_id)

    def words(self, run_id: str, *overrides: str, model: str = "tiny") -> list[str]:
        """`train` with its flags: data, weights and results on the server, nothing validated."""
        return [
            "train",
            *("--base", str(CONFIGS / f"tiny/{model}.yaml"), str(CONFIGS / "tiny/tiny_train.yaml")),
            *("--run-id", run_id, "--save", "s3://runs", "--load", "s3://weights/tiny/transformer"),
            *frozen_parts_at("s3://weights/tiny"),
            "args.train_data=[s3://clips/train]",
            "args.valid_data=[]",
            "args.eval_interval=null",
            "args.log_interval=1",
            *overrides,
        ]

    def environment(self, scratch: Path) -> dict[str, str]:
        """Variables of a process that uses the server and keeps its files under `scratch`."""
        return {**clean_environment(scratch), **self.server.environment()}


def frozen_parts_at(root: str) -> list[str]:
    """Overrides that name text encoder and VAE below a folder or prefix."""
    return [
        f"model.conditioner_config.params.emb_models[0].params.model_dir={root}/t5",
        f"model.first_stage_config.params.ckpt_path={root}/vae/3d-vae.pt",
    ]


@contextmanager
def tiny_world(folder: Path) -> Iterator[TinyWorld]:
    """Make clips, shards and weights below `folder`, and serve them."""
    for name, count, seed in (("train", CLIPS, 1), ("valid", VALID_CLIPS, 2)):
        make_clips(folder / "clips" / name, count, CLIP_SIZE, 8, 2.0, seed)
    with EmbeddedS3(folder / "s3") as server:
        for bucket in ("clips", "weights", "runs"):
            server.create_bucket(bucket)
        world = TinyWorld(folder, server)
        with pytest.MonkeyPatch.context() as patch:
            set_environment(patch, server.environment())
            for name in ("train", "valid"):
                clips = str(folder / "clips" / name)
                pack(clips, f"s3://clips/{name}", PackRules(shard_bytes=SHARD_BYTES))
        base = ["--base", str(CONFIGS / "tiny/tiny.yaml")]
        words = ["-m", "app.rehearsal.tiny_parts", str(world.weights), *base, "--seed", "1"]
        made = run_python(words, clean_environment(folder / "tmp"))
        assert made.code == 0, made.err
        yield world


def clean_environment(scratch: Path) -> dict[str, str]:
    """This process's variables, but nothing of ranks, storage and settings; TMPDIR is `scratch`."""
    kept = {name: value for name, value in os.environ.items() if not _OURS.search(name)}
    scratch.mkdir(parents=True, exist_ok=True)
    ours = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(scratch)}
    return {**kept, **ours, "PYTHONUNBUFFERED": "1"}


@dataclass(frozen=True)
class Ended:
    """A process after its end."""

    code: int
    out: str
    err: str


def cogvx(words: Sequence[str], environment: Mapping[str, str], timeout_s: float = RUN_S) -> Ended:
    """Run a command of the program to its end."""
    return run_python(["-m", "app", *words], environment, timeout_s)


def run_python(
    words: Sequence[str], environment: Mapping[str, str], timeout_s: float = RUN_S
) -> Ended:
    """Run `python *words`; whatever is left of it at the end or at the deadline is killed."""
    process = subprocess.Popen(
        warm_python(*words),
        env=dict(environment),
        cwd=environment["TMPDIR"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # one group holds all that it starts
    )
    try:
        out, err = process.communicate(timeout=timeout_s)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return Ended(process.returncode, out, err)


def numbers_of_steps(storage: Storage) -> dict[int, dict[str, float]]:
    """Step -> loss, lr and gradient norm; what a later start wrote replaces an earlier one's."""
    steps: dict[int, dict[str, float]] = {}
    for record in read_metrics(storage):
        if "loss" in record:
            kept = {name: record[name] for name in ("loss", "lr", "grad_norm", "skipped")}
            steps[int(record["step"])] = kept
    return steps


def digests_of_newest(storage: Storage) -> dict[str, str]:
    """Kind and name of every tensor of the newest checkpoint -> sha256 of its bytes."""
    ref = find_newest(storage)
    assert ref is not None, "the run has no complete checkpoint"
    found = {}
    with open_checkpoint(storage, ref) as checkpoint:
        for name, record in checkpoint.manifest.parameters.items():
            for kind in record.kinds:
                values = checkpoint.read(name, kind, 0, record.numel)
                found[f"{kind} {name}"] = hashlib.sha256(values.numpy().tobytes()).hexdigest()
    return found
