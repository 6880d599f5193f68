"""Mistakes that people make: one clear message, its exit code, and nothing half done."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from app.rehearsal.clips import make_clips
from tests.support.configs import CONFIGS
from tests.support.tiny_gang import Gang, ranks_by_hand
from tests.support.tiny_run import CLIP_SIZE, Ended, TinyWorld, cogvx, frozen_parts_at

MESSAGE = re.compile(r"^error: .+\n  where: .+\n  fix:   .+", re.MULTILINE)


def assert_clear(ended: Ended, code: int, *words: str) -> None:
    """The exit code, one message with its three parts, the words in it, and no traceback."""
    assert ended.code == code, ended.err[-3000:]
    assert len(MESSAGE.findall(ended.err)) == 1, ended.err[-3000:]
    assert "Traceback" not in ended.err
    message = ended.err[ended.err.index("error: ") :]
    for word in words:
        assert word in message, message


def layer(folder: Path, text: str) -> list[str]:
    """One more `--base` file."""
    path = folder / "mine.yaml"
    path.write_text(text)
    return ["--base", str(path)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["args.train_iter=4"], ("unknown key 'train_iter'", "did you mean 'train_iters'")),
        (["model.sampler_config.target=sgm.NoSampler"], ("unknown target 'sgm.NoSampler'",)),
        (["model.loss_fn_config.target=os.system"], ("unknown target 'os.system'", "--register")),
        (["args.lr=fast"], ("args.lr",)),
    ],
    ids=["misspelt key", "unknown target", "os.system", "wrong type"],
)
def test_a_wrong_configuration_is_refused_before_anything_starts(
    world: TinyWorld, tmp_path: Path, words: Sequence[str], said: Sequence[str]
) -> None:
    environment = world.environment(tmp_path)

    ended = cogvx([*world.words("mistaken"), *words], environment)

    assert_clear(ended, 78, *said)
    assert not (world.server.folder / "runs/mistaken").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("args:\n\ttrain_iters: 3\n", ("tab", "mine.yaml")),
        ("args:\n  save: ${args.nowhere}\n", ("args.nowhere", "mine.yaml")),
    ],
    ids=["tab", "dangling interpolation"],
)
def test_a_broken_file_is_named_with_its_place(
    world: TinyWorld, tmp_path: Path, text: str, said: Sequence[str]
) -> None:
    words = [*world.words("broken"), *layer(tmp_path, text)]

    ended = cogvx(words, world.environment(tmp_path / "tmp"))

    assert_clear(ended, 78, *said)


def test_every_mistake_is_told_at_once(world: TinyWorld, tmp_path: Path) -> None:
    words = [*world.words("many"), "args.train_iter=4", "model.scale_facto=1", "args.lr=fast"]

    ended = cogvx(words, world.environment(tmp_path))

    assert ended.code == 78
    assert ended.err.count("  where: ") == 3


def test_a_misspelt_flag_has_its_own_exit_code(world: TinyWorld, tmp_path: Path) -> None:
    ended = cogvx([*world.words("flag"), "--sav", "x"], world.environment(tmp_path))

    assert_clear(ended, 2, "--sav", "--save")


def test_a_missing_shard_is_named(world: TinyWorld, tmp_path: Path) -> None:
    words = world.words("no-shard", "args.train_data=[s3://clips/train/clips-000099.tar]")

    ended = cogvx(words, world.environment(tmp_path))

    assert_clear(ended, 66, "clips-000099.tar")


def test_a_missing_bucket_is_named(world: TinyWorld, tmp_path: Path) -> None:
    words = [*world.words("no-bucket"), "args.save=s3://nowhere"]

    ended = cogvx(words, world.environment(tmp_path))

    assert_clear(ended, 66, "nowhere")


def test_a_wrong_key_is_no_permission(world: TinyWorld, tmp_path: Path) -> None:
    environment = {**world.environment(tmp_path), "AWS_SECRET_ACCESS_KEY": "not-the-secret-key"}

    ended = cogvx(world.words("no-key"), environment)

    assert_clear(ended, 77, "s3://runs")
    assert "not-the-secret-key" not in ended.err + ended.out


# A bad clip is replaced and counted; here one is too many.
NONE_BAD = ("data.quarantine.max_share=0", "data.quarantine.after_samples=1")


@pytest.mark.slow
def test_a_truncated_video_of_a_folder_is_named(world: TinyWorld, tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    made = make_clips(clips, 4, CLIP_SIZE, 8, 2.0, 3)
    whole = made[2].video.read_bytes()
    made[2].video.write_bytes(whole[: len(whole) // 2])
    words = [
        *("train", "--base", str(CONFIGS / "tiny/tiny.yaml"), str(CONFIGS / "tiny/tiny_sft.yaml")),
        *("--run-id", "cut", "--save", str(tmp_path / "runs"), "--train-iters", "3"),
        *frozen_parts_at(str(world.weights)),
        f"args.train_data=[{clips}]",
        "args.valid_data=[]",
        "args.eval_interval=null",
        *NONE_BAD,
    ]

    ended = cogvx(words, world.environment(tmp_path / "tmp"))

    assert_clear(ended, 65, made[2].video.stem)


@pytest.mark.slow
def test_a_truncated_video_of_a_shard_is_named(world: TinyWorld, tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    made = make_clips(clips, 4, CLIP_SIZE, 8, 2.0, 3)
    whole = made[1].video.read_bytes()
    made[1].video.write_bytes(whole[: len(whole) // 2])
    shard = world.server.folder / "clips/cut/foreign-000000.tar"  # not of our own packer
    shard.parent.mkdir()
    with tarfile.open(shard, "w") as tar:
        for clip in made:
            for member in (clip.video, clips / "labels" / f"{clip.video.stem}.txt"):
                tar.add(member, member.name)

    data = f"args.train_data=[s3://clips/cut/{shard.name}]"
    words = world.words("cut-shard", data, *NONE_BAD)
    ended = cogvx(words, world.environment(tmp_path / "tmp"))

    assert_clear(ended, 65, shard.name, made[1].video.stem)


def test_packing_names_a_truncated_video(world: TinyWorld, tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    made = make_clips(clips, 4, CLIP_SIZE, 8, 2.0, 3)
    whole = made[1].video.read_bytes()
    made[1].video.write_bytes(whole[: len(whole) // 2])
    words = ["data", "pack", str(clips), "--out", str(tmp_path / "shards")]

    ended = cogvx(words, world.environment(tmp_path / "tmp"))

    assert_clear(ended, 65, made[1].video.name)


@pytest.mark.slow  # tests/distributed/test_process_groups.py has the quick ones
def test_two_processes_with_the_same_rank_both_end_at_once(
    world: TinyWorld, tmp_path: Path
) -> None:
    environment = world.environment(tmp_path / "tmp")
    processes = ranks_by_hand(world.words("clash"), environment, ranks=(1, 1))
    # Rank 0 is there, or the two would wait for it as they should.
    processes += ranks_by_hand(world.words("clash"), environment, ranks=(0,))
    shared = {"WORLD_SIZE": "3", "MASTER_PORT": processes[0].environ["MASTER_PORT"]}
    for number, process in enumerate(processes):
        process.environ.update({**shared, "LOCAL_WORLD_SIZE": "3"})  # type: ignore[attr-defined]
        object.__setattr__(process, "pod", f"process-{number}")

    with Gang(processes, tmp_path / "logs") as gang:
        codes = gang.codes(90.0)

    assert codes[:2] == [78, 78], gang.text()[-3000:]
    assert "RANK" in gang.text(gang.names[0])
    assert "Traceback" not in gang.text(gang.names[0])
    assert not (world.server.folder / "runs/clash").exists()
