from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.config.schema.data import QuarantineConfig
from app.data.bad_clip import CLOSED, BadClipError
from app.data.batch import Item
from app.data.left_out import LeftOut
from app.data.loader import Loader, LoaderSettings
from app.data.order.cursor import Cursor
from app.data.order.orders import EpochOrder
from app.data.order.share import Share
from app.data.quarantine import (
    BadSample,
    Filler,
    Quarantine,
    ReplacedSource,
    TooManyBadError,
    check_names,
    check_share,
)
from app.data.sources.protocols import Source
from app.data.sources.views import JoinedSource
from app.distributed.mix import mix

COUNTS = [9, 0, 14]


class FlawedSource(Source):
    """Sample i says `i@position`; some are bad, for ever or for their first reads."""

    sample_bytes = 12

    def __init__(self, counts: Sequence[int], bad: Mapping[int, str]) -> None:
        self.counts, self.bad = list(counts), dict(bad)
        self.failures_left: dict[int, int] = {}  # index -> reads that end with an OSError
        self.reads: Counter[int] = Counter()
        self.pending: Counter[int] = Counter()  # expected and not yet read
        self.lock = threading.Lock()

    def __len__(self) -> int:
        return sum(self.counts)

    def shard_sizes(self) -> Sequence[int]:
        return self.counts

    def fingerprint(self) -> str:
        return "flawed"

    def shard_id(self, index: int) -> str:
        return "a.tar" if index < self.counts[0] else "c.tar"

    def sample_id(self, index: int) -> tuple[str, str]:
        return self.shard_id(index), f"clip{index}"

    def read(self, index: int, position: int) -> Item:
        with self.lock:
            self.reads[index] += 1
            self.pending[index] -= 1
            failures = self.failures_left.get(index, 0)
            self.failures_left[index] = max(failures - 1, 0)
        if failures:
            raise OSError(5, "Input/output error")
        if index in self.bad:
            raise BadClipError(self.bad[index], "as planted", where=f"file {index}", sha256="ab")
        return {"txt": f"{index}@{position}", "num_frames": 1}

    def expect(self, index: int) -> None:
        with self.lock:
            self.pending[index] += 1

    def release(self, index: int) -> None:
        with self.lock:
            self.pending[index] -= 1

    def close(self) -> None:
        pass


def loader_of(
    source: FlawedSource,
    share: Share | None = None,
    workers: int = 0,
    rules: QuarantineConfig | None = None,
) -> Loader:
    share = share or Share(0, 1, 4)
    order = EpochOrder(source.shard_sizes(), seed=3, batch=share.batch, window=5)
    return Loader(
        source,
        order,
        share,
        settings=LoaderSettings(workers, 8, rules or QuarantineConfig()),
        identity=Cursor(0, 3, order.lanes, 5, share.batch, source.fingerprint()),
    )


def expected(order: EpochOrder, position: int, bad: set[int]) -> int:
    """The rule, said again."""
    candidates = [order.index(position), *(order.replacement(position, k) for k in range(500))]
    return next(index for index in candidates if index not in bad)


def used(loader: Loader, start: int, stop: int) -> list[str]:
    return [text for batch in loader.batches(start, stop) for text in batch["txt"]]


@pytest.mark.parametrize("workers", [0, 3])
def test_only_the_place_of_a_bad_sample_changes(workers: int) -> None:
    bad = {2: "truncated", 11: "not_a_video", 12: "not_a_video"}
    with loader_of(FlawedSource(COUNTS, bad), workers=workers) as loader:
        found = used(loader, 0, 20)
        order = loader.order

    assert isinstance(order, EpochOrder)
    assert found == [f"{expected(order, p, set(bad))}@{p}" for p in range(80)]
    kept = [f"{order.index(p)}@{p}" for p in range(80) if order.index(p) not in bad]
    assert [text for text in found if text in kept] == kept


def test_what_was_bad_is_noted_with_everything_that_is_known() -> None:
    with loader_of(FlawedSource(COUNTS, {11: "truncated"})) as loader:
        used(loader, 0, 6)
        (news,) = loader.quarantine.take_news()
        position = next(p for p in range(24) if loader.order.index(p) == 11)

    assert news == BadSample(
        "c.tar", "clip11", "file 11", "truncated", "as planted", "ab", position, 11
    )
    assert BadSample(**json.loads(json.dumps(asdict(news)))) == news
    assert not loader.quarantine.has_news()


@pytest.mark.parametrize("workers", [0, 2])
def test_every_announced_read_happens_or_is_released(workers: int) -> None:
    source = FlawedSource(COUNTS, {1: "x", 10: "x", 15: "x"})
    with loader_of(source, workers=workers) as loader:
        loader.quarantine.agree([("c.tar", "clip10")])
        iterator = loader.batches(0, 40)
        for _ in range(12):
            next(iterator)
        iterator.close()

    assert set(source.pending.values()) == {0}
    assert source.reads[10] == 0


def test_agreed_ids_count_from_the_next_batch_on_though_samples_were_read_ahead() -> None:
    source = FlawedSource(COUNTS, {})
    with loader_of(source, workers=2) as loader:
        iterator = loader.batches(0, 12)
        first = next(iterator)["txt"]
        later = loader.order.index(5)
        deadline = time.monotonic() + 5
        while not source.reads[later] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert source.reads[later] == 1  # already decoded, for position 5

        loader.quarantine.agree([source.sample_id(later)])
        rest = [text for batch in iterator for text in batch["txt"]]

    order = loader.order
    assert isinstance(order, EpochOrder)
    assert first == [f"{order.index(p)}@{p}" for p in range(4)]
    assert rest == [f"{expected(order, p, {later})}@{p}" for p in range(4, 48)]


def test_the_cursor_carries_the_ids_and_gives_them_back() -> None:
    source = FlawedSource(COUNTS, {})
    with loader_of(source) as loader:
        loader.quarantine.agree([("c.tar", "clip12"), ("a.tar", "clip3")])
        stored = loader.cursor(7).to_json()
    cursor = Cursor.from_json(stored)
    with loader_of(source) as again:
        cursor.check_continues(again.cursor(0))
        fresh = again.quarantine.agree(cursor.quarantined)
        found = used(again, 7, 13)

    assert stored["quarantined"] == [["a.tar", "clip3"], ["c.tar", "clip12"]]
    assert fresh == [("a.tar", "clip3"), ("c.tar", "clip12")]
    assert isinstance(again.order, EpochOrder)
    assert found == [f"{expected(again.order, p, {3, 12})}@{p}" for p in range(28, 52)]


def stream(
    counts: Sequence[int], bad: set[int], moments: Mapping[int, int], data: st.DataObject | None
) -> tuple[dict[int, int], list[tuple[str, str]]]:
    """Index at each position of a run that is killed and continued, or (data None) never killed.

    `moments`: sample -> the step in which it cannot be read, though it is sound at all others.
    """
    batch, steps = 6, 12
    taken: dict[int, int] = {}
    step, quarantined = 0, list[tuple[str, str]]()
    while step < steps:
        world = data.draw(st.sampled_from([1, 2, 3, 6])) if data else 1
        stop = min(steps, step + data.draw(st.integers(1, 5))) if data else steps
        micro = (
            data.draw(st.sampled_from([m for m in (1, 2, 3, 6) if batch // world % m == 0]))
            if data
            else 6
        )
        ranks = []
        for rank in range(world):
            source = FlawedSource(counts, {})
            share = Share(rank, world, micro, batch // world // micro)
            loader = loader_of(source, share)
            loader.quarantine.agree(quarantined)
            ranks.append((source, loader))
        saved = stop - (data.draw(st.integers(0, stop - step)) if data else 0)
        at_save = list(quarantined)
        for now in range(step, stop):
            news = []
            for source, loader in ranks:
                flawed = bad | {i for i, moment in moments.items() if moment == now}
                source.bad = dict.fromkeys(flawed, "x")
                for text in used(loader, now, now + 1):
                    index, position = text.split("@")
                    taken[int(position)] = int(index)
                news += loader.quarantine.take_news()
            for _, loader in ranks:
                loader.quarantine.agree(one.id for one in news)
            if now + 1 == saved:
                at_save = list(ranks[0][1].quarantine.ids())
        step = max(saved, step)
        quarantined = at_save
    return taken, quarantined


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_kills_and_world_sizes_change_nothing_of_a_stream_with_bad_samples(
    data: st.DataObject,
) -> None:
    check_killed(data)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(data=st.data())
def test_many_kills_change_nothing_of_a_stream_with_bad_samples(data: st.DataObject) -> None:
    check_killed(data)


def check_killed(data: st.DataObject) -> None:
    """A run killed again and again, some samples bad for ever, some in one step only."""
    # From 5 samples on, a third that is bad for ever and 2 that are for a step leave a good one.
    counts = data.draw(st.lists(st.integers(5, 20), min_size=1, max_size=4))
    numbers = st.integers(0, sum(counts) - 1)
    bad = data.draw(st.sets(numbers, max_size=sum(counts) // 3))
    moments = data.draw(st.dictionaries(numbers, st.integers(0, 11), max_size=2))
    undisturbed, ids = stream(counts, bad, moments, None)

    killed, ids_again = stream(counts, bad, moments, data)

    assert killed == undisturbed
    assert ids_again == ids


def test_a_file_that_cannot_be_read_is_read_once_more() -> None:
    source = FlawedSource(COUNTS, {})
    source.failures_left = {4: 1, 8: 2}
    with loader_of(source) as loader:
        used(loader, 0, 6)
        (news,) = loader.quarantine.take_news()

    assert (news.index, news.reason) == (8, "unreadable")
    assert source.reads[4] == 2
    assert source.pending[8] == 0


def test_a_run_whose_first_20_samples_fail_ends_at_once() -> None:
    source = FlawedSource([500], dict.fromkeys(range(400), "not_a_video"))
    share = Share(0, 1, 1)
    order = EpochOrder([500], seed=3, batch=1, window=5)
    chain = [order.index(0), *(order.replacement(0, k) for k in range(30))]
    for index in chain[:19]:
        source.bad[index] = "truncated"
    for index in chain[19:]:
        source.bad[index] = "not_a_video"

    with loader_of(source, share) as loader, pytest.raises(TooManyBadError) as caught:
        used(loader, 0, 1)

    assert "20 samples in a row" in caught.value.what
    assert "truncated 19, not_a_video 1" in caught.value.what
    assert sum(source.reads.values()) == 20
    assert len(loader.quarantine.take_news()) == 20


def test_19_bad_samples_in_a_row_do_not_end_a_run() -> None:
    source = FlawedSource([500], {})
    order = EpochOrder([500], seed=3, batch=1, window=5)
    chain = [order.index(0), *(order.replacement(0, k) for k in range(18))]
    source.bad = dict.fromkeys(chain, "x")

    with loader_of(source, Share(0, 1, 1)) as loader:
        assert used(loader, 0, 1) == [f"{order.replacement(0, 18)}@0"]


def test_a_small_dataset_without_a_good_sample_says_so() -> None:
    source = FlawedSource([3], dict.fromkeys(range(3), "empty"))

    with loader_of(source) as loader, pytest.raises(TooManyBadError, match="none of the 3") as got:
        used(loader, 0, 1)

    assert got.value.exit_code == 65
    assert source.reads.total() == 3


def test_a_small_dataset_that_is_all_in_quarantine_says_so() -> None:
    source = FlawedSource([2], {})
    with loader_of(source) as loader:
        loader.quarantine.agree([("a.tar", "clip0"), ("a.tar", "clip1")])
        with pytest.raises(TooManyBadError, match="in quarantine"):
            used(loader, 0, 1)


def test_the_last_good_sample_is_found_though_others_are_known_twice() -> None:
    source = FlawedSource([3], {0: "x"})
    order = EpochOrder([3], seed=3, batch=1, window=5)
    filler = Filler(source, order, quarantine := Quarantine())
    position = next(p for p in range(30) if order.index(p) == 0)
    filled = filler.fill(position, 0)

    quarantine.agree([("a.tar", "clip0"), source.sample_id(filled.index)])
    again = filler.refill(position, filled)

    assert {0, filled.index, again.index} == {0, 1, 2}


@pytest.mark.parametrize(
    ("quarantined", "seen", "samples", "stops"),
    [
        (11, 999, 5000, False),  # too early
        (10, 1000, 5000, False),  # 1.0% exactly
        (11, 1000, 5000, True),
        (11, 1100, 5000, False),
        (1, 1000, 50, True),  # 2% of the data, however often it was seen
        (0, 10**6, 5000, False),
    ],
)
def test_a_run_ends_when_the_share_of_bad_samples_is_too_large(
    quarantined: int, seen: int, samples: int, stops: bool
) -> None:
    outcome = pytest.raises(TooManyBadError, match="cannot be used") if stops else nullcontext()

    with outcome as caught:
        ids = [("a.tar", f"{number:03}") for number in range(quarantined)]
        check_share(ids, seen, samples, QuarantineConfig())

    if caught is not None:
        assert caught.value.where.startswith("samples a.tar/000")
        assert f"{quarantined} of {min(seen, samples)} samples" in caught.value.what
        assert "max_share" in caught.value.fix


def test_a_read_that_is_given_up_when_the_loader_closes_is_no_bad_sample() -> None:
    source = FlawedSource(COUNTS, dict.fromkeys(range(23), CLOSED))

    with loader_of(source) as loader, pytest.raises(BadClipError):
        used(loader, 0, 1)

    assert not loader.quarantine.has_news()


def test_samples_of_several_datasets_are_told_apart() -> None:
    joined = JoinedSource([FlawedSource([4], {}), FlawedSource([4], {})])
    quarantine = Quarantine()
    quarantine.agree([joined.sample_id(6)])

    assert [i for i in range(8) if quarantine.holds(joined, i)] == [6]
    assert joined.which(3) == 0
    assert joined.which(4) == 1


def test_validation_takes_the_next_good_sample_and_tries_a_bad_one_once() -> None:
    source = FlawedSource([4], {1: "x", 2: "x"})
    replaced = ReplacedSource(source, Quarantine())

    for _ in range(2):
        assert [replaced.read(i, i)["txt"] for i in range(4)] == ["0@0", "3@1", "3@2", "3@3"]
    assert (source.reads[1], source.reads[2]) == (1, 1)


def test_replacements_come_from_the_written_rule() -> None:
    source = FlawedSource([10], {})
    order = EpochOrder([10], seed=3, batch=4, window=5)
    source.bad = {order.index(0): "x"}
    base = order.index(0)  # of one shard base position and index are the same
    replacement = next(i for k in range(99) if (i := mix(3, 3, 0, base, k) % 10) not in source.bad)

    with loader_of(source) as loader:
        assert used(loader, 0, 1)[0] == f"{replacement}@0"


@pytest.mark.parametrize(
    ("bad", "videos", "stops"),
    [(11, 989, True), (10, 990, False), (11, 900, False), (500, 400, False), (1000, 0, True)],
)
def test_names_that_cannot_be_used_count_by_the_same_limits(
    bad: int, videos: int, stops: bool
) -> None:
    """1% of at least 1000 videos; other kinds of video are only named."""
    left_out = [LeftOut("", f"a\\{n}.mp4", "unusable_name") for n in range(bad)]
    left_out += [LeftOut("", f"{n}.gif", "unsupported_suffix") for n in range(800)]
    context = pytest.raises(TooManyBadError, match="max_share") if stops else nullcontext()

    with context as caught:
        check_names(left_out, videos, "s3://b/x", QuarantineConfig())

    if stops:
        assert f"{bad} of {bad + videos} videos" in str(caught.value)


class CountedSets(dict[str, set[str]]):
    """Ids by shard that count how often all of them are looked at."""

    looks = 0

    def items(self):  # type: ignore[no-untyped-def]
        self.looks += 1
        return super().items()


def test_the_ids_are_sorted_once_for_each_change() -> None:
    quarantine = Quarantine()
    quarantine._keys = counted = CountedSets()
    quarantine.agree([("b.tar", "2"), ("a.tar", "9"), ("b.tar", "1")])

    for _ in range(100):  # every step asks
        assert quarantine.ids() == (("a.tar", "9"), ("b.tar", "1"), ("b.tar", "2"))
    quarantine.agree([("a.tar", "9")])  # known already
    quarantine.ids()
    assert counted.looks == 1

    quarantine.agree([("a.tar", "0")])
    assert quarantine.ids()[0] == ("a.tar", "0")
    assert counted.looks == 2
