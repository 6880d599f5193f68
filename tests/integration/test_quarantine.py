"""A run over data with bad clips goes on and lists them; a resumed one makes the same steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.checkpoint.catalog import find_newest
from app.checkpoint.reader import open_checkpoint
from app.rehearsal.records import read_metrics
from app.storage.local import LocalStorage
from tests.support.corrupt_clips import BAD
from tests.support.shards import write_shard
from tests.support.tiny_gang import Gang, ranks_by_hand
from tests.support.tiny_run import Ended, TinyWorld, cogvx, digests_of_newest, numbers_of_steps

PLANTED = ("cut_at_half", "text", "only_sound")


@pytest.fixture(scope="module")
def shards(world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clips of the world in two shards, and three bad ones among them."""
    folder = tmp_path_factory.mktemp("planted")
    videos = sorted((world.clips / "videos").glob("**/*.mp4"))
    samples = {f"clip{i:02}": path.read_bytes() for i, path in enumerate(videos)}
    samples |= {name: BAD[name][0](folder) for name in PLANTED}
    for number in (0, 1):
        members = []
        for key in sorted(samples)[number::2]:
            members += [(f"{key}.mp4", samples[key]), (f"{key}.txt", f"about {key}".encode())]
        write_shard(folder / f"shards/{number:03}.tar", members)
    return folder / "shards"


def words(world: TinyWorld, shards: Path, run_id: str, *overrides: str) -> list[str]:
    return world.words(
        run_id,
        f"args.train_data=[{shards}]",
        "data.order.window=5",
        "args.save_interval=3",
        *overrides,
    )


def lines_of(storage: LocalStorage) -> list[dict[str, Any]]:
    keys = [entry.key for entry in storage.list("quarantine/")]
    return [json.loads(line) for key in keys for line in storage.read_small(key).splitlines()]


def cursor_of_newest(storage: LocalStorage) -> dict[str, Any]:
    ref = find_newest(storage)
    assert ref is not None
    with open_checkpoint(storage, ref) as checkpoint:
        return dict(checkpoint.state.cursor)


def one_rank(world: TinyWorld, line: list[str], scratch: Path) -> Ended:
    return cogvx(line, world.environment(scratch))


@pytest.mark.parametrize("ranks", [(0,), pytest.param((0, 1), marks=pytest.mark.slow)])
def test_bad_clips_are_replaced_listed_and_shown(
    ranks: tuple[int, ...], world: TinyWorld, shards: Path, tmp_path: Path
) -> None:
    run_id = f"bad-{len(ranks)}"
    line = words(world, shards, run_id, "args.train_iters=4", "data.quarantine.max_share=0.5")
    processes = ranks_by_hand(line, world.environment(tmp_path / "tmp"), ranks)
    with Gang(processes, tmp_path) as gang:
        assert gang.codes() == [0] * len(ranks), gang.text()[-4000:]
        told = [event for event in gang.events() if event.get("event") == "training"]
    storage = world.storage(run_id)

    listed = {(line["shard"], line["key"]): line["reason"] for line in lines_of(storage)}
    assert {key: reason for (_, key), reason in listed.items()} == {
        name: BAD[name][1] for name in PLANTED
    }
    assert cursor_of_newest(storage)["quarantined"] == [list(sample) for sample in sorted(listed)]
    assert told[-1]["bad_samples"] == 3
    last = [record for record in read_metrics(storage) if "loss" in record][-1]
    assert (last["bad_samples"], last["bad_samples/truncated"]) == (3, 1)

    shown = cogvx(
        ["data", "quarantine", f"s3://runs/{run_id}", "--json"], world.environment(tmp_path)
    )
    report = json.loads(shown.out)
    assert report["reasons"] == {"no_video_track": 1, "not_a_video": 1, "truncated": 1}
    assert {one["source"] for one in report["quarantined"]} == {str(shards)}


@pytest.mark.slow
def test_a_resumed_run_makes_the_steps_of_one_that_never_stopped(
    world: TinyWorld, shards: Path, tmp_path: Path
) -> None:
    line = ["args.train_iters=8", "data.quarantine.max_share=0.5", "args.batch_size=2"]
    whole = one_rank(world, words(world, shards, "bad-whole", *line), tmp_path / "a")
    stopped = words(world, shards, "bad-parts", *line)
    first = one_rank(world, [*stopped, "args.exit_interval=3"], tmp_path / "b")
    rest = one_rank(world, stopped, tmp_path / "c")

    assert [whole.code, first.code, rest.code] == [0, 0, 0], rest.err[-3000:]
    assert numbers_of_steps(world.storage("bad-parts")) == numbers_of_steps(
        world.storage("bad-whole")
    )
    assert digests_of_newest(world.storage("bad-parts")) == digests_of_newest(
        world.storage("bad-whole")
    )


@pytest.mark.slow
def test_a_run_over_too_much_bad_data_ends_with_65_and_still_lists_it(
    world: TinyWorld, shards: Path, tmp_path: Path
) -> None:
    limits = ("data.quarantine.max_share=0.01", "data.quarantine.after_samples=8")
    line = words(world, shards, "bad-many", "args.train_iters=20", *limits)

    ended = one_rank(world, line, tmp_path)

    assert ended.code == 65, ended.err[-3000:]
    assert "samples cannot be used" in ended.err
    assert "data.quarantine.max_share" in ended.err
    assert {line["key"] for line in lines_of(world.storage("bad-many"))} <= set(PLANTED)
    assert lines_of(world.storage("bad-many"))
