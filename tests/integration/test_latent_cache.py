"""The latent cache in a bucket: several encoders, a hurt network, and real runs from it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from app.data.latent_cache import EncodePart, LatentEntry
from app.data.opening import LoaderRequest, open_loader
from app.data.order.share import Share
from app.run.attempt.latents import CachedClips
from app.storage.opening import open_storage
from tests.support.encoding import Inputs, write_inputs
from tests.support.fault_proxy import FaultProxy
from tests.support.s3_servers import RunningServer, set_environment
from tests.support.tiny_run import TinyWorld, cogvx, numbers_of_steps
from tests.support.warm_python import warm_python

I2V = (
    "model.noised_image_input=true",
    "model.noised_image_dropout=0.3",
    "model.network_config.params.in_channels=8",
    "args.load=null",
)
FAULTS = [
    {"kind": kind, "rate": 0.1, "match": "GET"} for kind in ("status", "reset_body", "truncate")
] + [{"kind": kind, "rate": 0.1, "match": "PUT"} for kind in ("status", "cut_upload")]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(params=["rclone", pytest.param("moto", marks=pytest.mark.slow)])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> RunningServer:
    running: RunningServer = request.getfixturevalue(f"{request.param}_server")
    set_environment(monkeypatch, running.environment)
    return running


def entries_of(root: str) -> dict[str, int]:
    """Key -> bytes of every entry below a cache, each read whole."""
    storage = open_storage(root)
    found = {}
    for entry in storage.list():
        if "/shards/" in entry.key:
            key = entry.key.rpartition("/")[2].removesuffix(".safetensors")
            data = storage.read_small(entry.key)
            LatentEntry.from_bytes(data, key, entry.key)
            assert key not in found
            found[key] = len(data)
    return found


def stream(inputs: Inputs, root: str) -> list[tuple[Any, ...]]:
    """Two epochs of the cached batches: names, positions and every number."""
    config = inputs.config("--latent-cache", root)
    cached = CachedClips.of_run(config)
    assert cached is not None
    assert config.data is not None
    request = LoaderRequest(
        paths=config.data.train, share=Share(0, 1, 2), seed=3, replace=cached.cached_source
    )
    with open_loader(config.data, request) as loader:
        return [
            (
                batch["keys"],
                batch["positions"],
                batch["latent_mean"].tolist(),
                batch["latent_logvar"].tolist(),
                batch["text_embedding"].tolist(),
            )
            for batch in loader.batches(0, 5)
        ]


def test_two_encoders_of_one_bucket_leave_each_clip_once(
    server: RunningServer, inputs: Inputs, tmp_path: Path
) -> None:
    root = f"s3://{server.bucket}/{tmp_path.name}"
    inputs.encode(out=f"{tmp_path}/local")

    reports = inputs.encode_twice_at_once(out=root)

    assert [report.computed + report.found for report in reports] == [5, 5]
    assert entries_of(root) == entries_of(f"{tmp_path}/local")
    assert stream(inputs, root) == stream(inputs, f"{tmp_path}/local")


@pytest.mark.slow
def test_a_hurt_network_changes_no_entry_and_no_batch(
    rclone_server: RunningServer,
    inputs: Inputs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = f"s3://{rclone_server.bucket}/{tmp_path.name}"
    inputs.encode(out=f"{tmp_path}/local")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "node"))

    with FaultProxy(rclone_server.port, FAULTS, seed=4) as proxy:
        set_environment(monkeypatch, rclone_server.behind(proxy.endpoint))
        for index in range(2):
            inputs.encode(out=root, part=EncodePart(index, 2))
        found = stream(inputs, root)
        told = proxy.stats()
        hurt = told["requests"] - told["passed"]

    set_environment(monkeypatch, rclone_server.environment)
    assert hurt > 0
    assert found == stream(inputs, f"{tmp_path}/local")
    assert entries_of(root) == entries_of(f"{tmp_path}/local")


# real processes


def begun(words: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        warm_python("-m", "app", *words),
        env=dict(environment),
        cwd=environment["TMPDIR"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def encode_words(world: TinyWorld, out: str, *more: str) -> list[str]:
    return ["encode", *world.words("encode")[1:], "--out", out, "--json", *more]


def shards_on_disk(world: TinyWorld, name: str) -> list[Path]:
    return list((world.server.folder / "runs" / name).glob("*/shards/*/*"))


@pytest.mark.slow
def test_a_killed_encoder_leaves_whole_entries_and_others_finish(
    world: TinyWorld, tmp_path: Path
) -> None:
    environment = world.environment(tmp_path / "tmp")
    words = encode_words(world, "s3://runs/killed")
    first = begun(words, environment)
    deadline = time.monotonic() + 120
    while len(shards_on_disk(world, "killed")) < 2 and time.monotonic() < deadline:
        assert first.poll() is None or len(shards_on_disk(world, "killed")) >= 2
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    left = len(shards_on_disk(world, "killed"))

    two = [begun(words, environment) for _ in range(2)]
    reports = []
    for process in two:
        out, err = process.communicate(timeout=200)
        assert process.returncode == 0, err[-3000:]
        reports.append(json.loads(out))

    assert left >= 2
    assert [report["computed"] + report["found"] for report in reports] == [12, 12]
    assert all(report["found"] >= left for report in reports)
    files = shards_on_disk(world, "killed")
    assert len(files) == len({path.stem for path in files}) == 12
    for path in files:
        LatentEntry.from_bytes(path.read_bytes(), path.stem, str(path))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["t2v", "i2v"])
def test_a_run_from_the_cache_has_the_losses_of_a_live_run(
    world: TinyWorld, tmp_path: Path, kind: str
) -> None:
    overrides = [
        *(I2V if kind == "i2v" else ()),
        "args.valid_data=[s3://clips/valid]",
        "args.train_iters=4",
        "args.eval_interval=4",
    ]
    environment = world.environment(tmp_path)
    out = f"s3://runs/latents-{kind}"
    for index in range(2):  # as the pods of an Indexed Job
        pod = {**environment, "JOB_COMPLETION_INDEX": str(index)}
        ended = cogvx([*encode_words(world, out, "--parts", "2"), *overrides], pod)
        assert ended.code == 0, ended.err[-3000:]

    logs = {}
    for name, words in (("live", []), ("cached", ["--latent-cache", out])):
        ended = cogvx([*world.words(f"{kind}-{name}", *overrides), *words], environment)
        assert ended.code == 0, ended.err[-3000:]
        logs[name] = ended.err

    live, cached = (
        numbers_of_steps(world.storage(f"{kind}-{name}")) for name in ("live", "cached")
    )
    assert sorted(live) == [1, 2, 3, 4]
    for step, numbers in live.items():
        assert cached[step]["loss"] == pytest.approx(numbers["loss"], rel=0, abs=1e-6)
        assert cached[step]["grad_norm"] == pytest.approx(numbers["grad_norm"], abs=1e-5)
    assert "text encoder loaded" in logs["live"]
    assert "text encoder loaded" not in logs["cached"]
    # Text-to-video has the VAE as a guest, for the videos of the validation.
    assert ("loading on demand" in logs["cached"]) == (kind == "t2v")
    samples = list((world.server.folder / f"runs/{kind}-cached/samples").glob("*/*.mp4"))
    assert samples


@pytest.mark.slow
def test_a_run_stops_at_a_cache_that_does_not_fit(world: TinyWorld, tmp_path: Path) -> None:
    environment = world.environment(tmp_path)
    ended = cogvx(encode_words(world, "s3://runs/unfit"), environment)
    assert ended.code == 0, ended.err[-3000:]

    words = world.words("unfit-run", "--latent-cache", "s3://runs/unfit", "--bf16")
    refused = cogvx(words, environment)

    assert refused.code == 78
    assert "dtype is fp32 in the cache and bf16 here" in refused.err
    assert "cogvx encode --base" in refused.err
