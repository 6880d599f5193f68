"""Training from the latent cache: the same batches and losses, and no cache of another run."""

from __future__ import annotations

import logging
import shlex
import shutil
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from app.config.schema.run import TrainableRun
from app.data.bad_clip import BadClipError
from app.data.opening import LoaderRequest, open_loader
from app.data.order.share import Share
from app.data.sources.protocols import Source
from app.data.sources.settings import SourceSettings
from app.diffusion.timesteps import Strata
from app.distributed.groups import ProcessGroups
from app.distributed.seeding import KeyedDraws
from app.errors import ConfigError
from app.run.attempt.attempt import Attempt, Seams
from app.run.attempt.latents import CachedClips
from app.run.build import (
    InitialWeights,
    LoadOptions,
    OnDemandModule,
    build_modules,
    build_network,
)
from app.run.encode.settings import cache_settings, encode_command
from app.storage.local import LocalStorage
from app.telemetry.logging import LogContext
from app.training.forward import forward_step
from app.training.loop import LoopState
from app.training.signals import StopFlag
from app.training.step import DiffusionModel, Randomness
from tests.support.clip_files import encode as write_clip
from tests.support.configs import load
from tests.support.encoding import Inputs, write_inputs, write_weights
from tests.unit.run.folders import run_folder

CPU = torch.device("cpu")
I2V = (
    "model.noised_image_input=true",
    "model.noised_image_dropout=0.3",
    "model.network_config.params.in_channels=8",
)
STEPS, MICRO_BATCH = 4, 2


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Encoded for text-to-video."""
    inputs = write_inputs(tmp_path_factory.mktemp("made"))
    inputs.encode()
    return inputs


@pytest.fixture
def inputs(made: Inputs, tmp_path: Path) -> Inputs:
    """A copy that may be changed; its paths are new, so it is encoded again from what is there."""
    shutil.copytree(made.folder, tmp_path / "in")
    copied = Inputs(tmp_path / "in")
    copied.encode()
    return copied


def cached_config(inputs: Inputs, *words: str) -> TrainableRun:
    return inputs.config("--latent-cache", str(inputs.cache), *words)


def loader_of(config: TrainableRun, cached: CachedClips | None, workers: int = 1) -> Any:
    request = LoaderRequest(
        paths=config.data.train,
        share=Share(0, 1, MICRO_BATCH),
        seed=3,
        compat=config.compat,
        replace=cached.cached_source if cached is not None else None,
    )
    return open_loader(config.data, request)


# the same numbers


def losses(config: TrainableRun, cached: CachedClips | None) -> tuple[list[float], DiffusionModel]:
    """Losses of a few steps of plain gradient descent, from the same start."""
    model = config.model
    scratch = InitialWeights(None, is_resumed=False, force=False, seed=1, cache_dir=Path("unused"))
    network, _ = build_network(model, torch.float32, scratch)
    place = LoadOptions(CPU, torch.float32, Path("unused"))
    parts = build_modules(model, network, place, from_cache=cached is not None)
    randomness = Randomness(
        partial(KeyedDraws, 3), partial(Strata.from_positions, total=MICRO_BATCH, seed=3)
    )
    engine = DiffusionModel(parts, model, randomness, device=CPU, dtype=torch.float32)
    descent = torch.optim.SGD(network.parameters(), lr=1e-3)
    found = []
    with loader_of(config, cached) as loader:
        for batch in loader.batches(0, STEPS):
            loss, _ = engine.shared_step(batch)
            loss.backward()
            descent.step()
            descent.zero_grad()
            found.append(float(loss.detach()))
    return found, engine


@pytest.mark.parametrize("words", [(), I2V], ids=["text-to-video", "image-to-video"])
def test_losses_from_the_cache_are_those_of_live_encoding(
    inputs: Inputs, words: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    inputs.encode(*words)
    config = cached_config(inputs, *words)
    caplog.set_level(logging.INFO)

    live, _ = losses(config, None)
    caplog.clear()
    cached, engine = losses(config, CachedClips.of_run(config))

    assert cached == pytest.approx(live, rel=0, abs=1e-6)
    assert len(set(live)) == STEPS
    assert isinstance(engine.conditioner.encoder, OnDemandModule)
    assert isinstance(engine.vae, OnDemandModule) == (
        words == ()
    )  # image-to-video encodes first frames
    loaded = {r.message for r in caplog.records} & {"VAE loaded", "text encoder loaded"}
    assert loaded == ({"VAE loaded"} if words else set())


def test_the_order_and_the_cursor_are_those_of_the_live_data(inputs: Inputs) -> None:
    config = cached_config(inputs)
    cached = CachedClips.of_run(config)

    with loader_of(config, None) as live, loader_of(config, cached) as encoded:
        for one, other in zip(live.batches(0, 6), encoded.batches(0, 6), strict=True):
            for name in ("positions", "keys", "txt"):
                assert one[name] == other[name]
            assert torch.equal(one["num_frames"], other["num_frames"])
            assert torch.equal(one["fps"], other["fps"])
            assert "mp4" not in other
        assert live.cursor(6) == encoded.cursor(6)


def test_a_bad_clip_has_the_same_reason_as_live(inputs: Inputs) -> None:
    (inputs.clips / "videos/c1.mp4").write_text("no video " * 200)
    inputs.encode()
    config = cached_config(inputs)

    errors = []
    for cached in (None, CachedClips.of_run(config)):
        with loader_of(config, cached) as loader, pytest.raises(BadClipError) as caught:
            loader.source.read(1, 1)
        errors.append((caught.value.reason, caught.value.detail, caught.value.where))

    assert errors[0] == errors[1]
    assert errors[0][0] == "not_a_video"


def test_moments_of_the_cache_are_sampled_anew_in_every_epoch(inputs: Inputs) -> None:
    config = cached_config(inputs)
    _, engine = losses(config, CachedClips.of_run(config))

    with loader_of(config, CachedClips.of_run(config)) as loader:
        batch = next(loader.batches(0, 1))
    again = {**batch, "positions": [position + 100 for position in batch["positions"]]}

    first = engine.encode(batch, KeyedDraws(3, batch["positions"]))
    second = engine.encode(again, KeyedDraws(3, again["positions"]))
    assert not torch.equal(first.latents, second.latents)


# in a start of a run


def attempt(config: TrainableRun, groups: ProcessGroups, root: Path) -> Attempt:
    folder = run_folder(root)
    return Attempt(Namespace(), config, groups, folder, root, LogContext(rank=0), StopFlag())


SEAMS = Seams(DiffusionModel, forward_step, create_dataset=None, collate_fn=None)


def test_a_start_reads_its_batches_from_the_cache(
    inputs: Inputs, groups: ProcessGroups, tmp_path: Path
) -> None:
    config = cached_config(inputs)
    made = attempt(config, groups, tmp_path / "run")

    with made.loader(SEAMS, CachedClips.of_run(config)) as loader:
        batch = next(made.batches(loader, LoopState()))

    assert batch["latent_mean"].shape == (2, 3, 4, 4, 8)
    assert "mp4" not in batch


def test_a_start_ends_at_a_cache_that_does_not_fit(
    made: Inputs, groups: ProcessGroups, tmp_path: Path
) -> None:
    config = cached_config(made, "data.params.fps=4")

    with pytest.raises(ConfigError, match="does not fit this run"):
        attempt(config, groups, tmp_path).train(SEAMS, None)


# a cache that does not fit


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--bf16",), "dtype is fp32 in the cache and bf16 here (args.bf16 and args.fp16)"),
        (("data.params.fps=4",), "fps is 8.0 in the cache and 4.0 here (data.params.fps)"),
        (("data.params.max_num_frames=5",), "frames is 9 in the cache and 5 here"),
        (("data.params.video_size=[32, 32]",), "columns is 64 in the cache and 32 here"),
        (("--frame-rule", "sat"), "frame_rule is exact in the cache and sat here"),
        (
            ("model.conditioner_config.params.emb_models[0].params.max_length=12",),
            "max_length is 16 in the cache and 12 here",
        ),
        (I2V, "first_frame is false in the cache and true here (model.noised_image_input)"),
    ],
)
def test_a_cache_of_another_configuration_is_refused_with_what_differs(
    made: Inputs, words: tuple[str, ...], says: str
) -> None:
    config = cached_config(made, *words)

    with pytest.raises(ConfigError) as caught:
        CachedClips.of_run(config)

    assert caught.value.exit_code == 78
    assert says in caught.value.what
    assert caught.value.what.count(" in the cache and ") == 1
    assert "cogvx encode --base" in caught.value.fix


@pytest.mark.parametrize(("file", "says"), [("3d-vae.pt", "vae_weights"), ("t5", "text_weights")])
def test_a_cache_of_other_weights_is_refused(inputs: Inputs, file: str, says: str) -> None:
    write_weights(inputs.folder / "other", seed=6)
    place = inputs.folder / file
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    shutil.move(inputs.folder / "other" / file, place)

    with pytest.raises(ConfigError, match=f"{says} is sha256 .* in the cache and sha256") as caught:
        CachedClips.of_run(cached_config(inputs))

    assert caught.value.what.count(" in the cache and ") == 1


def test_weights_that_are_gone_cannot_be_compared_and_are_not_needed(
    inputs: Inputs, caplog: pytest.LogCaptureFixture
) -> None:
    (inputs.folder / "3d-vae.pt").unlink()
    shutil.rmtree(inputs.folder / "t5")

    found, _ = losses(cached_config(inputs), CachedClips.of_run(cached_config(inputs)))

    assert len(found) == STEPS
    (told,) = [r for r in caplog.records if "missing weights cannot be compared" in r.message]
    assert told.weights == ["vae_weights", "text_weights"]  # type: ignore[attr-defined]


def test_two_caches_that_differ_in_weights_alone_need_the_weights(inputs: Inputs) -> None:
    write_weights(inputs.folder, seed=6)
    inputs.encode()
    (inputs.folder / "3d-vae.pt").unlink()

    fitting = CachedClips.of_run(cached_config(inputs))  # the text encoder tells them apart
    shutil.rmtree(inputs.folder / "t5")

    assert fitting is not None
    with pytest.raises(ConfigError, match="2 latent caches made with different weights fit"):
        CachedClips.of_run(cached_config(inputs))


def test_a_folder_without_a_cache_is_refused_with_the_command(made: Inputs) -> None:
    config = made.config("--latent-cache", str(made.clips))

    with pytest.raises(ConfigError, match="there is no latent cache") as caught:
        CachedClips.of_run(config)

    assert "cogvx encode" in caught.value.fix


def test_missing_and_changed_clips_are_refused_by_name(inputs: Inputs) -> None:
    write_clip(inputs.clips / "videos/c3.mp4", frames=40)
    write_clip(inputs.clips / "videos/new.mp4")
    (inputs.clips / "labels/new.txt").write_text("a new clip")
    config = cached_config(inputs)

    with pytest.raises(ConfigError) as caught:
        loader_of(config, CachedClips.of_run(config))

    assert "lacks 2 of 6 clips" in caught.value.what
    assert "changed since they were encoded: videos/c3.mp4" in caught.value.what
    assert "not encoded: videos/new.mp4" in caught.value.what
    inputs.encode()
    with loader_of(config, CachedClips.of_run(config)) as loader:
        assert len(loader) == 6


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_an_entry_that_is_gone_or_cut_is_found_before_the_start(
    inputs: Inputs, damage: str
) -> None:
    path = next(iter(inputs.cache.glob("*/shards/*/*")))
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    config = cached_config(inputs)

    with pytest.raises(ConfigError, match="lacks 1 of 5 clips"):
        loader_of(config, CachedClips.of_run(config))


def test_validation_clips_that_are_not_encoded_are_left_live(
    made: Inputs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clips = tmp_path / "clips"
    shutil.copytree(made.clips, clips)
    config = cached_config(made, f"args.train_data=[{clips}]")
    cached = CachedClips.of_run(config)
    assert cached is not None
    live: Any = object.__new__(_Source)

    assert cached.cached_or_live_source(live, str(clips), SourceSettings()) is live

    (told,) = [r for r in caplog.records if "encoded live" in r.message]
    assert "cogvx encode" in told.fix  # type: ignore[attr-defined]


class _Source(Source):
    """One clip that nobody has encoded."""

    def __len__(self) -> int:
        return 1

    def fingerprint(self) -> str:
        return "x"


# the command


def test_the_command_makes_the_cache_that_the_run_wants(made: Inputs) -> None:
    overrides = ("--bf16", "data.params.fps=16", "--frame-rule", "sat", "--lr", "1e-5", *I2V)
    wanted = cached_config(made, *overrides)

    words = shlex.split(encode_command(wanted, "s3://bucket/latents"))

    assert words[:2] == ["cogvx", "encode"]
    out = words.index("--out")
    assert words[out + 1] == "s3://bucket/latents"
    again = load(*words[2:out], *words[out + 2 :])
    root = LocalStorage(made.cache)
    assert cache_settings(again, root) == cache_settings(wanted, root)
    assert (again.data.train, again.data.valid) == (wanted.data.train, wanted.data.valid)
    assert not any("lr" in word.split("=")[0] for word in words)


def test_where_weights_lie_does_not_count(inputs: Inputs, made: Inputs) -> None:
    root = LocalStorage(made.cache)

    assert cache_settings(inputs.config(), root) == cache_settings(made.config(), root)


def test_known_digests_spare_the_reading_of_weights(
    made: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = cache_settings(made.config(), LocalStorage(made.cache))

    def refuse(*arguments: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("app.run.encode.digests.fetch", refuse)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # another node

    assert cache_settings(made.config(), LocalStorage(made.cache)) == before


def test_caches_of_several_settings_lie_side_by_side(inputs: Inputs) -> None:
    inputs.encode("data.params.fps=4")
    plain, slow = cached_config(inputs), cached_config(inputs, "data.params.fps=4")

    found = [CachedClips.of_run(plain), CachedClips.of_run(slow)]

    urls = {one.cache.url for one in found if one is not None}
    assert len(urls) == 2
    assert [len(one.present) for one in found if one is not None] == [5, 5]
