"""`cogvx encode`: what is computed, what is kept, and what several jobs at once leave behind."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import app.run.encode.job
from app.config.schema.data import SFTDataConfig
from app.data.batch import Item
from app.data.latent_cache import EncodePart, LatentCache, LatentEntry, SampleRecord
from app.data.pack import PackRules, pack
from app.data.sources.settings import SourceSettings
from app.data.sources.sft import SFTSource
from app.data.video.transforms import scale_pixels
from app.errors import ConfigError, DataError
from app.run.build import LoadOptions, build_text_encoder, build_vae
from app.run.encode.job import EncodeReport, EncodeRequest, encode
from app.run.encode.settings import cache_settings
from app.storage.local import LocalStorage
from tests.support.clip_files import encode as write_clip
from tests.support.clip_files import run_ffmpeg, write_folder
from tests.support.encoding import CAPTIONS, Inputs, write_inputs
from tests.support.numbered_clips import REGISTRATION

SHARDS = (
    "data.target=data_video.VideoDataset",
    "data.params=null",
    "data.params={image_size: [32, 64], num_frames: 9, fps: 8, skip_frms_num: 0.}",
)
NUMBERED = ("data.target=numbered", "data.params=null", "data.params={count: 3}")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return write_inputs(tmp_path_factory.mktemp("made"))


@pytest.fixture
def inputs(made: Inputs, tmp_path: Path) -> Inputs:
    """A copy, without anything encoded."""
    shutil.copytree(made.folder, tmp_path / "in", ignore=shutil.ignore_patterns("cache"))
    return Inputs(tmp_path / "in")


@pytest.fixture
def no_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError("a network was loaded")

    monkeypatch.setattr(app.run.encode.job, "build_vae", refuse)
    monkeypatch.setattr(app.run.encode.job, "build_text_encoder", refuse)


def counts(report: EncodeReport) -> tuple[int, int, int]:
    return report.samples, report.computed, report.found


def opened(inputs: Inputs, *overrides: str) -> LatentCache:
    root = LocalStorage(inputs.cache)
    settings = cache_settings(inputs.config(*overrides), root)
    return LatentCache(lambda name: LocalStorage(inputs.cache / name), settings)


def records(inputs: Inputs, *overrides: str) -> dict[str, SampleRecord]:
    found = list(opened(inputs, *overrides).records(str(inputs.clips)))
    by_name = {record.name: record for record in found}
    assert len(by_name) == len(found)
    return by_name


def entry_of(inputs: Inputs, name: str, *overrides: str) -> LatentEntry:
    key = records(inputs, *overrides)[name].key
    (path,) = inputs.cache.glob(f"*/shards/{key[:2]}/{key}.safetensors")
    return LatentEntry.from_bytes(path.read_bytes(), key, str(path))


# what an entry holds


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_entry_is_what_the_networks_give_for_the_clip(inputs: Inputs, precision: str) -> None:
    words = ("--bf16",) if precision == "bf16" else ()
    video = clip_2(inputs)["mp4"]
    if precision == "bf16":  # a CPU without AVX-512 takes seconds for each clip
        for path in inputs.clips.glob("*/*"):
            if path.stem != "c2":
                path.unlink()
    inputs.encode(*words)

    found = entry_of(inputs, "videos/c2.mp4", *words)

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = inputs.config().model
    assert model is not None
    place = LoadOptions(torch.device("cpu"), dtype, inputs.folder)
    posterior = build_vae(model, place).encode(scale_pixels(video, dtype)[None])
    text = build_text_encoder(model.conditioner, place).encode([CAPTIONS["c2"] or ""])
    assert found.mean.dtype == found.text.dtype == dtype
    assert torch.equal(found.mean, posterior.mean[0])
    assert torch.equal(found.logvar, posterior.logvar[0])
    assert torch.equal(found.text, text[0])
    assert (found.caption, found.num_frames, found.fps) == (CAPTIONS["c2"], 9, 8.0)
    assert found.first_frame is None


def test_image_to_video_keeps_the_first_frame_as_pixels(inputs: Inputs) -> None:
    words = ("model.noised_image_input=true", "model.network_config.params.in_channels=8")
    inputs.encode(*words)

    found = entry_of(inputs, "videos/c2.mp4", *words)

    assert found.first_frame is not None
    assert torch.equal(found.first_frame, clip_2(inputs)["mp4"][:1])
    assert found.first_frame.dtype == torch.uint8


def clip_2(inputs: Inputs) -> Item:
    """The third clip as training reads it."""
    data = inputs.config().data
    assert data is not None
    assert isinstance(data.params, SFTDataConfig)
    source = SFTSource(data.params, str(inputs.clips), SourceSettings())
    item = source.read(2, 2)
    source.close()
    return item


# what is computed


def test_a_second_run_computes_nothing_and_loads_no_network(
    inputs: Inputs, request: pytest.FixtureRequest
) -> None:
    first = inputs.encode()
    before = inputs.shards()
    request.getfixturevalue("no_networks")

    second = inputs.encode()

    assert counts(first) == (5, 5, 0)
    assert counts(second) == (5, 0, 5)
    assert inputs.shards() == before
    assert len(before) == 5


@pytest.mark.parametrize("edit", ["video", "caption"])
def test_editing_one_clip_computes_one_entry(inputs: Inputs, edit: str) -> None:
    inputs.encode()
    before, keys = inputs.shards(), records(inputs)
    if edit == "video":
        write_clip(inputs.clips / "videos/c3.mp4", frames=33)
    else:
        (inputs.clips / "labels/c3.txt").write_text("now it is a dog")

    report = inputs.encode()

    after = inputs.shards()
    assert counts(report) == (5, 1, 4)
    assert {name: after[name] for name in before} == before
    assert len(after) == 6
    changed = {name for name, one in records(inputs).items() if one.key != keys[name].key}
    assert changed == {"videos/c3.mp4"}


def test_a_touched_or_copied_dataset_is_read_again_but_not_computed(
    inputs: Inputs, request: pytest.FixtureRequest
) -> None:
    inputs.encode()
    request.getfixturevalue("no_networks")
    os.utime(inputs.clips / "videos/c1.mp4", (1, 1))
    shutil.copytree(inputs.clips, inputs.folder / "copy")

    touched = inputs.encode()
    copied = inputs.encode(f"args.train_data=[{inputs.folder}/copy]")

    assert counts(touched) == counts(copied) == (5, 0, 5)
    assert len(inputs.shards()) == 5


def test_shards_packed_from_a_folder_share_its_entries(
    inputs: Inputs, request: pytest.FixtureRequest
) -> None:
    inputs.encode()
    request.getfixturevalue("no_networks")
    pack(str(inputs.clips), str(inputs.folder / "tars"), PackRules(shard_bytes=9000))

    report = inputs.encode(
        *SHARDS,
        f"args.train_data=[{inputs.folder}/tars]",
    )

    assert counts(report) == (5, 0, 5)


def test_the_same_clip_twice_has_one_entry(inputs: Inputs) -> None:
    for kind, suffix in (("videos", "mp4"), ("labels", "txt")):
        shutil.copy(inputs.clips / kind / f"c0.{suffix}", inputs.clips / kind / f"twin.{suffix}")

    report = inputs.encode()

    assert counts(report) == (6, 5, 1)
    assert len(inputs.shards()) == 5
    assert records(inputs)["videos/twin.mp4"].key == records(inputs)["videos/c0.mp4"].key


def test_validation_data_are_encoded_too(inputs: Inputs) -> None:
    more = write_folder(inputs.folder / "valid", {"v": "another clip"}, frames=17)

    report = inputs.encode(f"args.valid_data=[{more}]")

    assert counts(report) == (6, 6, 0)
    assert [one.name for one in opened(inputs).records(str(more))] == ["videos/v.mp4"]


def test_a_registered_dataset_is_keyed_by_its_pixels(
    inputs: Inputs, request: pytest.FixtureRequest
) -> None:
    words = ("--register", REGISTRATION, *NUMBERED, "args.train_data=[here]")

    first = inputs.encode(*words)
    request.getfixturevalue("no_networks")
    second = inputs.encode(*words)

    assert counts(first) == (3, 3, 0)
    assert counts(second) == (3, 0, 3)


# several jobs


def test_parts_together_are_the_whole(inputs: Inputs, request: pytest.FixtureRequest) -> None:
    reports = [inputs.encode(part=EncodePart(index, 3)) for index in range(3)]
    request.getfixturevalue("no_networks")

    whole = inputs.encode()

    assert [report.computed for report in reports] == [1, 2, 2]
    assert counts(whole) == (5, 0, 5)
    assert len(inputs.shards()) == 5


def test_two_jobs_at_once_leave_one_whole_entry_per_clip(inputs: Inputs) -> None:
    reports = inputs.encode_twice_at_once()

    assert [report.computed + report.found for report in reports] == [5, 5]
    files = list(inputs.cache.glob("*/shards/*/*"))
    assert len(files) == 5
    assert {path.stem for path in files} == {one.key for one in records(inputs).values()}
    for path in files:
        assert LatentEntry.from_bytes(path.read_bytes(), path.stem, "").mean.shape == (3, 4, 4, 8)
    assert len(list(inputs.cache.glob("*/datasets/*/*"))) == 1


def test_a_job_that_was_stopped_goes_on_where_it_was(inputs: Inputs) -> None:
    def stop(done: int, total: int, computed: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode(inputs.config(), EncodeRequest(out=str(inputs.cache)), stop)
    stopped, lists = len(inputs.shards()), list(inputs.cache.glob("*/datasets/*/*"))

    report = inputs.encode()

    assert lists == []  # a list says that everything in it is there
    assert 1 <= stopped <= 3
    assert counts(report) == (5, 5 - stopped, stopped)


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_an_entry_that_is_gone_or_cut_is_made_again(inputs: Inputs, damage: str) -> None:
    inputs.encode()
    path = next(iter(inputs.cache.glob("*/shards/*/*")))
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(whole[:-1])

    report = inputs.encode()

    assert counts(report) == (5, 1, 4)
    assert path.read_bytes() == whole


def test_a_failed_upload_publishes_no_list(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(storage: LocalStorage, path: Path, key: str) -> None:
        raise DataError("no", where=key, fix="")

    monkeypatch.setattr(LocalStorage, "upload", refuse)

    with pytest.raises(DataError, match="no"):
        inputs.encode()

    assert list(inputs.cache.glob("*/datasets/*/*")) == []


# clips that cannot be used


def test_a_bad_clip_is_listed_with_its_reason_and_tried_again(inputs: Inputs) -> None:
    (inputs.clips / "videos/c4.mp4").write_text("this is no video " * 100)

    first = inputs.encode()
    write_clip(inputs.clips / "videos/c4.mp4", frames=20)
    second = inputs.encode()

    assert counts(first) == (5, 4, 0)
    (bad,) = first.bad
    assert bad["reason"] == "not_a_video"
    assert bad["key"].endswith("videos/c4.mp4")
    assert counts(second) == (5, 1, 4)
    assert second.bad == []


def test_nothing_but_bad_clips_is_an_error(inputs: Inputs) -> None:
    for path in (inputs.clips / "videos").iterdir():
        run_ffmpeg(["-f", "lavfi", "-i", "anullsrc=d=0.2", "-c:a", "aac", str(path)])

    with pytest.raises(DataError, match="none of 5 clips") as caught:
        inputs.encode()

    assert caught.value.exit_code == 65


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("data.temporal_crop=random",), "temporal_crop: random"),
        (
            ("--frame-rule", "sat", *SHARDS),
            "frame_rule: sat of shards",
        ),
        (("model.first_stage_config.params.ckpt_path=null",), "no weights"),
    ],
)
def test_what_changes_from_epoch_to_epoch_is_refused(
    made: Inputs, words: tuple[str, ...], what: str
) -> None:
    with pytest.raises(ConfigError, match=what):
        made.encode(*words)


def test_captions_with_another_trigger_word_are_other_entries(inputs: Inputs) -> None:
    plain = inputs.encode()
    first = inputs.encode("data.caption_prefix=sks")
    again = inputs.encode("data.caption_prefix=sks")

    assert [counts(report) for report in (plain, first, again)] == [(5, 5, 0), (5, 5, 0), (5, 0, 5)]
    assert len(inputs.shards()) == 10
