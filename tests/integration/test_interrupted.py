"""Runs that somebody stops by hand, or kills, and what lies there afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.checkpoint.catalog import find_newest
from app.launch.processes import descendants
from app.run.attempt.fingerprint import fingerprint
from tests.support.tiny_run import TinyWorld, cogvx

WAIT_S = 150.0


@contextmanager
def running(
    words: Sequence[str], environment: Mapping[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """The command as a process that leads a group, as on a terminal; killed at the end."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "app", *words],
            env=dict(environment),
            cwd=environment["TMPDIR"],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            for pid in [process.pid, *descendants(process.pid)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()


def wait_for_step(step: int, log: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
        if any(one.get("event") == "training" and one["steps_done"] >= step for one in lines):
            return
        time.sleep(0.05)
    raise AssertionError(log.read_text()[-4000:])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 4] ^= 1
    path.write_bytes(data)


@pytest.mark.slow
def test_ctrl_c_saves_and_a_flipped_bit_in_what_was_saved_is_named_with_the_ways_on(
    world: TinyWorld, tmp_path: Path
) -> None:
    storage, log = world.storage("by-hand"), tmp_path / "log.txt"
    words = world.words("by-hand", "args.train_iters=500", "args.save_interval=2")
    environment = world.environment(tmp_path / "tmp")

    with running(words, environment, log) as process:
        wait_for_step(3, log)
        os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the whole group
        code = process.wait(WAIT_S)

    said = log.read_text()
    assert code == 130, said[-3000:]
    saved = find_newest(storage)
    assert saved is not None
    assert f"stopped by SIGINT after step {saved.step}, which is saved" in said
    assert "it continues from this step: cogvx train --base" in said
    assert "bad sample" not in said
    progress = json.loads(storage.read_small("progress.json"))
    assert (progress["state"], progress["cause"]) == (
        "interrupted",
        f"stopped by SIGINT after step {saved.step}, which is saved",
    )
    identity = json.loads(storage.read_small("run.json"))
    local = world.server.folder / "weights/tiny/transformer"
    assert identity["weights"]["load"]["digest"] == fingerprint(str(local))

    folder = world.server.folder / "runs/by-hand" / saved.folder
    flip_a_bit(next(folder.glob("weights-*.safetensors")))
    damaged = cogvx([*words, "args.train_iters=1000"], environment)

    assert damaged.code == 65, damaged.err[-3000:]
    assert "Traceback" not in damaged.err
    message = damaged.err[damaged.err.index("error: ") :]
    assert "weights-00000-of-00001.safetensors is damaged" in message
    assert "--resume-from NAME: step-" in message

    more = (f"args.train_iters={saved.step + 1}", "--resume-from", "2")
    resumed = cogvx([*words, *more], environment)

    assert resumed.code == 0, resumed.err[-3000:]
    again = cogvx([*words, *more], environment)
    assert again.code == 0
    assert "the run is finished already" in again.err
    assert "s3://runs/by-hand" in again.err


@pytest.mark.slow
def test_sigkill_of_the_command_leaves_no_rank_training(world: TinyWorld, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    words = world.words("killed", "args.train_iters=1000", "args.save_interval=null")
    environment = world.environment(tmp_path / "tmp")

    with running([*words, "--nproc-per-node", "2"], environment, log) as process:
        wait_for_step(2, log)
        below = descendants(process.pid)
        process.kill()
        process.wait()

        deadline = time.monotonic() + 10
        while any(is_running(pid) for pid in below) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(below) >= 3  # torchrun and two ranks
        assert [pid for pid in below if is_running(pid)] == []


def is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
