from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence

import pytest
import torch

from app.data.batch import Item
from app.data.loader import Loader, LoaderSettings, Lookahead
from app.data.order.cursor import Cursor
from app.data.order.orders import EpochOrder
from app.data.order.share import Share
from app.data.sources.protocols import Source
from app.data.sources.registered import MapSource
from app.data.sources.views import JoinedSource
from app.errors import ConfigError, DataError

SAMPLES = 23


class NumbersSource(Source):
    """Sample i is a clip of value i; counts what is asked of it."""

    sample_bytes = 3 * 4

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at = fails_at
        self.lock = threading.Lock()
        self.expected: list[int] = []
        self.ended: list[int] = []
        self.running = 0
        self.most_running = 0
        self.closed = False

    def __len__(self) -> int:
        return SAMPLES

    def shard_sizes(self) -> Sequence[int]:
        return [SAMPLES]

    def fingerprint(self) -> str:
        return "numbers"

    def read(self, index: int, position: int) -> Item:
        with self.lock:
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        time.sleep(0.002 * (index % 3))  # so that threads finish out of order
        with self.lock:
            self.running -= 1
            self.ended.append(index)
        if index == self.fails_at:
            raise DataError("broken", where=f"sample {index}", fix="fix it")
        video = torch.full((1, 3, 2, 2), index, dtype=torch.uint8)
        return {"mp4": video, "txt": f"{index}@{position}", "num_frames": 1, "fps": 8.0, "key": "k"}

    def expect(self, index: int) -> None:
        self.expected.append(index)

    def release(self, index: int) -> None:
        self.ended.append(index)

    def close(self) -> None:
        self.closed = True


def loader_of(source: NumbersSource, share: Share, workers: int, prefetch: int = 4) -> Loader:
    order = EpochOrder(source.shard_sizes(), seed=1, batch=share.batch, window=5)
    identity = Cursor(0, 1, order.lanes, 5, share.batch, source.fingerprint())
    return Loader(
        source, order, share, settings=LoaderSettings(workers, prefetch), identity=identity
    )


def texts(loader: Loader, start: int, stop: int) -> list[list[str]]:
    return [batch["txt"] for batch in loader.batches(start, stop)]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_are_those_of_order_and_share(workers: int) -> None:
    share = Share(rank=1, world_size=2, micro_batch=2, accumulation=2)
    with loader_of(NumbersSource(), share, workers) as loader:
        found = texts(loader, 3, 6)

        assert found == [
            [f"{loader.order.index(p)}@{p}" for p in share.positions(step, micro)]
            for step in range(3, 6)
            for micro in range(2)
        ]


def test_a_batch_has_upstream_keys_and_ours() -> None:
    with loader_of(NumbersSource(), Share(0, 1, 3), 2) as loader:
        batch = next(iter(loader.batches(2)))

    assert batch["mp4"].shape == (3, 1, 3, 2, 2)
    assert batch["num_frames"].dtype == torch.int64
    assert batch["fps"].tolist() == [8, 8, 8]
    assert batch["positions"] == [6, 7, 8]
    assert batch["keys"] == ["k", "k", "k"]


def test_starting_later_gives_the_rest_of_the_same_stream() -> None:
    with loader_of(NumbersSource(), Share(0, 1, 2), 2) as loader:
        whole, rest = texts(loader, 0, 20), texts(loader, 13, 20)

    assert whole[13:] == rest


def test_reads_ahead_are_bounded() -> None:
    source = NumbersSource()
    with loader_of(source, Share(0, 1, 1), workers=2, prefetch=3) as loader:
        iterator = loader.batches(0, 40)
        next(iterator)
        time.sleep(0.2)

        assert len(source.ended) <= 2 * 3
        assert source.most_running <= 2
        iterator.close()


def test_an_error_comes_to_the_consumer_as_it_is_and_in_its_place() -> None:
    source = NumbersSource()
    with loader_of(source, Share(0, 1, 1), 2) as loader:
        source.fails_at = loader.order.index(4)
        iterator = loader.batches(0, 10)

        for _ in range(4):
            next(iterator)
        with pytest.raises(DataError) as caught:
            next(iterator)

    assert caught.value.where == f"sample {source.fails_at}"


def test_every_expected_read_happens_or_is_released() -> None:
    source = NumbersSource()
    with loader_of(source, Share(0, 1, 2), 2) as loader:
        iterator = loader.batches(0, 100)
        for _ in range(5):
            next(iterator)
        iterator.close()

    assert sorted(source.ended) == sorted(source.expected)
    assert len(source.expected) > 10


class GatedSource(NumbersSource):
    """Reads of position 1 and later wait at a gate; tells what was begun and what was released."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[int] = []
        self.released: list[int] = []
        self.waits, self.gate = threading.Event(), threading.Event()

    def read(self, index: int, position: int) -> Item:
        self.begun.append(index)
        if position:
            self.waits.set()
            assert self.gate.wait(30)
        return super().read(index, position)

    def release(self, index: int) -> None:
        self.released.append(index)


def test_closing_releases_the_reads_that_did_not_begin_and_no_other() -> None:
    source = GatedSource()
    with loader_of(source, Share(0, 1, 1), workers=1, prefetch=4) as loader:
        iterator = loader.batches(0, 6)
        next(iterator)
        assert source.waits.wait(30)
        # One thread: position 1 is being read, 2 and 3 are queued, 4 and 5 are only announced.
        iterator.close()
        released = list(source.released)
        source.gate.set()

        indices = [loader.order.index(position) for position in range(6)]

    assert source.expected == indices
    assert source.begun == indices[:2]
    assert released == source.released == indices[2:]


def test_closing_ends_threads_and_source() -> None:
    before = threading.active_count()
    source = NumbersSource()
    loader = loader_of(source, Share(0, 1, 1), 3)
    next(iter(loader.batches()))

    loader.close()
    loader.close()

    assert source.closed
    assert threading.active_count() == before


def test_the_cursor_counts_steps_and_names_the_sequence() -> None:
    with loader_of(NumbersSource(), Share(0, 2, 2, 3), 0) as loader:
        cursor = loader.cursor(17, skipped=[3])

    assert (cursor.t, cursor.batch, cursor.skipped) == (17, 12, (3,))
    cursor.check_continues(loader.cursor(0))


def test_epochs_become_steps() -> None:
    with loader_of(NumbersSource(), Share(0, 1, 4), 0) as loader:
        assert loader.steps_for_epochs(1) == 6  # 23 samples in 4 lanes: the longest has 6
        assert len(loader) == SAMPLES


def test_joined_datasets_count_through() -> None:
    joined = JoinedSource([NumbersSource(), NumbersSource()])

    assert len(joined) == 2 * SAMPLES
    assert joined.shard_sizes() == [SAMPLES, SAMPLES]
    assert joined.read(SAMPLES + 4, 0)["txt"] == "4@0"


class UserDataset:
    """As a user of upstream writes one."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, object]:
        video = torch.zeros(1, 3, 2, 2)
        return {"mp4": video, "txt": str(index), "num_frames": 1, "fps": 8, "extra": index}


@pytest.fixture
def users() -> Iterator[Loader]:
    source = MapSource(UserDataset(), "mine")
    order = EpochOrder([4], seed=0, batch=2)
    with Loader(
        source,
        order,
        Share(0, 1, 2),
        settings=LoaderSettings(1),
        identity=Cursor(0, 0, order.lanes, 256, 2, source.fingerprint()),
    ) as loader:
        yield loader


def test_a_users_dataset_goes_through_the_same_loader(users: Loader) -> None:
    batches = list(users.batches(0, 2))

    assert sorted(text for batch in batches for text in batch["txt"]) == ["0", "1", "2", "3"]
    assert batches[0]["mp4"].dtype == torch.float32
    assert batches[0]["extra"].dtype == torch.int64
    assert batches[0]["keys"][0].startswith("mine[")


def test_a_dataset_without_indexing_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be indexed"):
        MapSource(iter([]), "mine")


def test_an_item_without_video_is_refused() -> None:
    with pytest.raises(DataError, match="'mp4' and 'txt'"):
        MapSource([{"txt": "x"}], "mine").read(0, 0)


class FailingDataset(UserDataset):
    """Item 2 raises what a user's code raises."""

    def __getitem__(self, index: int) -> dict[str, object]:
        if index == 2:
            raise KeyError("no such column")
        return super().__getitem__(index)


def test_an_error_of_a_users_dataset_is_a_bad_sample_with_its_line() -> None:
    source = MapSource(FailingDataset(), "mine")
    order = EpochOrder([4], seed=0, batch=2)
    identity = Cursor(0, 0, order.lanes, 256, 2, source.fingerprint())
    with Loader(
        source, order, Share(0, 1, 2), settings=LoaderSettings(0), identity=identity
    ) as loader:
        texts_found = [text for batch in loader.batches(0, 2) for text in batch["txt"]]
        (news,) = loader.quarantine.take_news()

    assert len(texts_found) == 4
    assert "2" not in texts_found
    assert (news.reason, news.where, news.key) == ("dataset_error", "item 2 of mine", "#2")
    assert "KeyError: 'no such column'" in news.detail
    assert f"{__file__}:" in news.detail


def announced(seconds: float, batch: int, per_batch_s: float, batches: int = 40) -> int:
    now = [0.0]
    ahead = Lookahead(seconds, clock=lambda: now[0])
    for _ in range(batches):
        now[0] += per_batch_s
        ahead.note(batch)
    return ahead.samples()


def test_as_many_samples_as_the_seconds_need_at_the_measured_rate() -> None:
    assert announced(120, batch=4, per_batch_s=2.0) == pytest.approx(240, abs=1)
    assert announced(60, batch=4, per_batch_s=2.0) == pytest.approx(120, abs=1)


def test_the_rate_is_that_of_the_last_batches() -> None:
    now = [0.0]
    ahead = Lookahead(100, clock=lambda: now[0])
    for pace in [10.0] * 50 + [0.5] * 32:
        now[0] += pace
        ahead.note(1)

    assert ahead.samples() == pytest.approx(200, abs=1)


def test_bounds_hold_before_the_rate_is_known_and_at_extreme_ones() -> None:
    assert announced(120, batch=4, per_batch_s=1.0, batches=3) == 512
    assert announced(120, batch=1, per_batch_s=1000.0) == 64
    assert announced(120, batch=64, per_batch_s=0.0) == 65536
