"""The quarantine of one start: told to the ranks, listed, limited."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from app.config.schema.data import QuarantineConfig
from app.data.left_out import LeftOut
from app.data.loader import Loader, LoaderSettings
from app.data.order.cursor import Cursor
from app.data.order.orders import EpochOrder
from app.data.order.share import Share
from app.data.quarantine import TooManyBadError
from app.data.sources.views import JoinedSource
from app.distributed.groups import ProcessGroups
from app.errors import InputMissingError, RetryableError
from app.run.attempt.bad_samples import QuarantineKeeper
from app.run.dataset.bad_samples import joined, list_quarantine
from app.training.loop import LoopState
from tests.unit.data.test_quarantine import FlawedSource
from tests.unit.run.folders import run_folder


class IndexedSource(FlawedSource):
    """Two members of its shard never got an index."""

    def left_out(self) -> list[LeftOut]:
        return [
            LeftOut("a.tar", "twice", "duplicate_key"),
            LeftOut("a.tar", "../up", "unsafe_name"),
        ]


def keeper_of(
    root: Path, source: FlawedSource, rules: QuarantineConfig | None = None, attempt: int = 1
) -> QuarantineKeeper:
    order = EpochOrder(source.shard_sizes(), seed=3, batch=4, window=5)
    loader = Loader(
        JoinedSource([source]),
        order,
        Share(0, 1, 4),
        settings=LoaderSettings(0, 1, rules or QuarantineConfig(max_share=1.0)),
        identity=Cursor(0, 3, order.lanes, 5, 4, "x"),
    )
    return QuarantineKeeper(run_folder(root, attempt=attempt), 0, loader, ["s3://clips"])


def train(keeper: QuarantineKeeper, steps: int) -> None:
    """Read batches as the loop does, telling news after each step."""
    for done, _ in enumerate(keeper.loader.batches(0, steps), start=1):
        if keeper.has_news():
            keeper.agree(LoopState(step=done))


def test_what_was_found_is_agreed_listed_and_counted(
    groups: ProcessGroups, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = {2: "truncated", 11: "not_a_video", 12: "not_a_video"}
    keeper = keeper_of(tmp_path, FlawedSource([9, 14], bad))

    with caplog.at_level(logging.WARNING):
        train(keeper, 6)
    keeper.close()

    assert keeper.loader.quarantine.ids() == (
        ("a.tar", "clip2"),
        ("c.tar", "clip11"),
        ("c.tar", "clip12"),
    )
    assert keeper.metrics() == {
        "bad_samples": 3,
        "bad_samples/not_a_video": 2,
        "bad_samples/truncated": 1,
    }
    (path,) = tmp_path.glob("quarantine/*")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert path.name == "000001-r0000.jsonl"
    assert {line["key"]: line["reason"] for line in lines} == {
        "clip2": "truncated",
        "clip11": "not_a_video",
        "clip12": "not_a_video",
    }
    assert all(line["source"] == "s3://clips" and line["sha256"] == "ab" for line in lines)
    assert [line["step"] for line in lines] == [line["position"] // 4 + 1 for line in lines]
    told = [record for record in caplog.records if record.message.startswith("bad sample")]
    assert len(told) == 3


def test_names_that_no_file_of_ours_can_hold_are_listed_as_they_are_shown(
    groups: ProcessGroups, tmp_path: Path
) -> None:
    source = FlawedSource([9], {})
    odd = [
        LeftOut("", "videos/\udce4.mp4", "unusable_name"),
        LeftOut("", "a\nb.mp4", "unusable_name"),
    ]
    source.left_out = lambda: odd  # type: ignore[method-assign]
    keeper = keeper_of(tmp_path, source)

    keeper.begin()

    (path,) = tmp_path.glob("quarantine/*")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["key"] for line in lines] == [r"'videos/\udce4.mp4'", r"'a\nb.mp4'"]
    assert [line["detail"] for line in lines] == [
        "its name is not UTF-8: rename it",
        "its name has a control character: rename it",
    ]


def test_nothing_bad_writes_nothing(groups: ProcessGroups, tmp_path: Path) -> None:
    keeper = keeper_of(tmp_path, FlawedSource([9], {}))

    train(keeper, 4)
    keeper.close()

    assert keeper.metrics() == {"bad_samples": 0}
    assert not list(tmp_path.glob("quarantine/*"))


def test_too_large_a_share_ends_the_run_after_it_was_listed(
    groups: ProcessGroups, tmp_path: Path
) -> None:
    rules = QuarantineConfig(max_share=0.1, after_samples=12)
    keeper = keeper_of(tmp_path, FlawedSource([40], dict.fromkeys(range(0, 40, 3), "x")), rules)

    for done, _ in enumerate(keeper.loader.batches(0, 2), start=1):
        keeper.agree(LoopState(step=done))  # 8 samples: too early
    with pytest.raises(TooManyBadError, match="of 12 samples cannot be used"):
        keeper.check(3)
    keeper.close()

    assert list(tmp_path.glob("quarantine/*"))


def test_the_first_samples_of_a_run_are_listed_when_all_fail(
    groups: ProcessGroups, tmp_path: Path
) -> None:
    keeper = keeper_of(tmp_path, FlawedSource([300], dict.fromkeys(range(300), "not_a_video")))

    with pytest.raises(TooManyBadError, match="20 samples in a row"):
        next(keeper.loader.batches(0, 1))
    keeper.close()

    (path,) = tmp_path.glob("quarantine/*")
    assert len(path.read_text().splitlines()) == 20


def test_a_storage_that_fails_costs_freshness_only(
    groups: ProcessGroups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = keeper_of(tmp_path, FlawedSource([20], {4: "x"}))
    write = type(keeper.run.storage).write_small

    def fail(*_: Any) -> None:
        raise RetryableError("no storage", where="s3://x", fix="wait")

    monkeypatch.setattr(type(keeper.run.storage), "write_small", fail)
    train(keeper, 5)
    monkeypatch.setattr(type(keeper.run.storage), "write_small", write)
    keeper.close()

    assert [one.key for one in merged_of(tmp_path)] == ["clip4"]


def merged_of(root: Path) -> list[Any]:
    (root / "run.json").write_text("{}")
    return list_quarantine(str(root))


def test_samples_without_a_place_are_listed_from_the_start(
    groups: ProcessGroups, tmp_path: Path
) -> None:
    keeper = keeper_of(tmp_path, IndexedSource([20], {}))

    keeper.begin()

    found = {one.key: (one.reason, one.step) for one in merged_of(tmp_path)}
    assert found == {"twice": ("duplicate_key", 0), "../up": ("unsafe_name", 0)}
    assert keeper.metrics() == {"bad_samples": 0}


def test_a_resumed_start_knows_why_the_samples_of_its_checkpoint_are_bad(
    groups: ProcessGroups, tmp_path: Path
) -> None:
    source = FlawedSource([20], {4: "truncated", 9: "too_long"})
    first = keeper_of(tmp_path, source)
    train(first, 5)
    first.close()

    second = keeper_of(tmp_path, FlawedSource([20], {}), attempt=2)
    second.loader.quarantine.agree([*first.loader.quarantine.ids(), ("a.tar", "clip7")])
    second.begin()

    assert second.metrics() == {
        "bad_samples": 3,
        "bad_samples/too_long": 1,
        "bad_samples/truncated": 1,
        "bad_samples/unknown": 1,
    }


# the joined list


def line(key: str, attempt: int, step: int, reason: str = "x", **more: Any) -> dict[str, Any]:
    return {
        "source": "s3://c",
        "shard": "a.tar",
        "key": key,
        "reason": reason,
        "detail": "d",
        "attempt": attempt,
        "step": step,
        **more,
    }


def test_a_sample_is_listed_once_with_the_newest_reason_and_the_first_step() -> None:
    found = joined(
        [line("k", 2, 7, "decoder_crash"), line("k", 1, 9, "decoder_timeout"), line("b", 1, 3)]
    )

    assert [(one.key, one.reason, one.step, one.attempts) for one in found] == [
        ("b", "x", 3, (1,)),
        ("k", "decoder_crash", 7, (1, 2)),
    ]


def test_lines_that_cannot_be_read_do_not_hide_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "quarantine").mkdir()
    good = json.dumps(line("k", 1, 2))
    (tmp_path / "quarantine/000001-r0000.jsonl").write_text(f"{good}\nnot json\n[1]\n{{}}\n")

    assert [one.key for one in merged_of(tmp_path)] == ["k"]
    assert caplog.records[-1].__dict__["lines"] == 3


def test_a_folder_without_a_run_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError, match="no run"):
        list_quarantine(str(tmp_path))
