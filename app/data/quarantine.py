"""Samples that cannot be used: which are known to all ranks, and what takes their place.

A position whose sample is bad is filled by `Order.replacement(position, k)`, k = 0, 1, ... until
one is good, so nothing else moves. What a rank may take depends on agreed facts only: the
quarantine as all ranks knew it at the beginning of the step, and what reading finds. Readers work
ahead of the training, so a sample that was read before it was quarantined is replaced when its
batch is taken (`Loader`). The agreed ids are part of the cursor: docs/data_order.md.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from app.config.schema.data import QuarantineConfig
from app.data.bad_clip import CLOSED, BadClipError
from app.data.batch import Item
from app.data.left_out import UNREADABLE, UNUSABLE, LeftOut, summary
from app.data.order.orders import Order
from app.data.sources.protocols import SampleId, Source
from app.data.sources.views import ForwardingSource
from app.errors import DataError

log = logging.getLogger(__name__)

# Of one position: a good sample is found in a few tries unless hardly any is left.
MOST_REPLACEMENTS = 10_000
NAMES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class BadSample:
    """One sample that cannot be used.

    Attributes:
        shard, key: its id.
        where: its place for people, as in the error's message.
        reason: a short word to count by (docs/data_quarantine.md).
        sha256: of the video file, where it was read.
        position: of the global order, where it was found.
        index: of the dataset; depends on the data alone.
    """

    shard: str
    key: str
    where: str
    reason: str
    detail: str
    sha256: str | None
    position: int
    index: int

    @property
    def id(self) -> SampleId:
        return self.shard, self.key


@dataclass(frozen=True, slots=True)
class Filled:
    """What a position got: an item, the index that it came from, and what was bad before it."""

    item: Item
    index: int
    bad: tuple[BadSample, ...]


class TooManyBadError(DataError):
    """So many samples cannot be used that the data or its reading is wrong as a whole."""


class Quarantine:
    """The ids that all ranks know, and what this rank has found since.

    Its methods may be called from any thread.
    """

    def __init__(self, rules: QuarantineConfig | None = None) -> None:
        self.rules = rules or QuarantineConfig()
        self._lock = threading.Lock()
        self._keys: dict[str, set[str]] = {}  # by shard
        self._count = 0
        self._sorted: tuple[SampleId, ...] | None = ()  # None: an id was added since
        self._news: dict[SampleId, BadSample] = {}

    def __len__(self) -> int:
        return self._count

    def ids(self) -> tuple[SampleId, ...]:
        """All agreed ids, sorted: once after a change, because every step asks."""
        with self._lock:
            if self._sorted is None:
                pairs = ((shard, key) for shard, keys in self._keys.items() for key in keys)
                self._sorted = tuple(sorted(pairs))
            return self._sorted

    def agree(self, ids: Iterable[SampleId]) -> list[SampleId]:
        """Quarantine these from the next step on; the ones that were not, in sorted order.

        Every rank must pass the same ids between the same two steps.
        """
        with self._lock:
            fresh = []
            for shard, key in sorted(set(ids)):
                known = self._keys.setdefault(shard, set())
                if key not in known:
                    known.add(key)
                    self._count += 1
                    fresh.append((shard, key))
            if fresh:
                self._sorted = None
            return fresh

    def note(self, found: Iterable[BadSample]) -> None:
        """Keep what a batch of this rank met, until the ranks agree."""
        with self._lock:
            for bad in found:
                if bad.key not in self._keys.get(bad.shard, ()):
                    self._news.setdefault(bad.id, bad)

    def has_news(self) -> bool:
        """Whether this rank found something that the others do not know."""
        with self._lock:
            return bool(self._news)

    def take_news(self) -> list[BadSample]:
        """What was noted since the last call."""
        with self._lock:
            news, self._news = list(self._news.values()), {}
            return news

    def holds(self, source: Source, index: int) -> bool:
        """Whether a sample is quarantined."""
        with self._lock:
            keys = self._keys.get(source.shard_id(index), set())
        return bool(keys) and source.sample_id(index)[1] in keys


class Filler:
    """Finds a good sample for a position; called from many threads."""

    def __init__(self, source: Source, order: Order, quarantine: Quarantine) -> None:
        self._source = source
        self._order = order
        self._quarantine = quarantine

    def fill(self, position: int, index: int) -> Filled:
        """The sample `index` of a position, or what takes its place.

        One read of `index` was announced (`Source.expect`); the other ones are announced here.

        Raises:
            TooManyBadError: no good one was found.
        """
        if self._quarantine.holds(self._source, index):
            self._source.release(index)
            return self._replaced(position, [])
        found = self._read(position, index)
        return found if isinstance(found, Filled) else self._replaced(position, [found])

    def refill(self, position: int, filled: Filled) -> Filled:
        """The same, or another sample when this one was quarantined since it was read."""
        if not self._quarantine.holds(self._source, filled.index):
            return filled
        return self._replaced(position, list(filled.bad))

    def _replaced(self, position: int, bad: list[BadSample]) -> Filled:
        tried = {one.index for one in bad}
        for attempt in range(MOST_REPLACEMENTS):
            if len(bad) >= self._quarantine.rules.first_samples or self._all_bad(tried):
                break
            index = self._order.replacement(position, attempt)
            if index in tried or self._quarantine.holds(self._source, index):
                continue
            self._source.expect(index)
            found = self._read(position, index)
            if isinstance(found, Filled):
                return Filled(found.item, index, tuple(bad))
            bad.append(found)
            tried.add(index)
        self._quarantine.note(bad)  # for the list of the run, which ends here
        raise none_good(bad, len(self._quarantine), len(self._source))

    def _all_bad(self, tried: set[int]) -> bool:
        if len(tried) + len(self._quarantine) < len(self._source):
            return False
        # What was tried may have been quarantined meanwhile: nothing must count twice.
        new = sum(not self._quarantine.holds(self._source, index) for index in tried)
        return new + len(self._quarantine) >= len(self._source)

    def _read(self, position: int, index: int) -> Filled | BadSample:
        problem: BadClipError
        try:
            return Filled(self._read_again(position, index), index, ())
        except BadClipError as error:
            if error.reason == CLOSED:
                raise
            problem = error
        shard, key = self._source.sample_id(index)
        return BadSample(
            shard,
            key,
            problem.where,
            problem.reason,
            problem.detail,
            problem.sha256,
            position,
            index,
        )

    def _read_again(self, position: int, index: int) -> Item:
        """Read; once more if the operating system could not.

        A decoder that was lost is replaced and asked again further down (`decode`), an object
        store is asked again by `app.storage`.
        """
        for reads_left in (1, 0):
            try:
                return self._source.read(index, position)
            except OSError as problem:
                if not reads_left:
                    raise BadClipError("unreadable", f"{problem}, twice") from problem
                log.warning("reading again", extra={"index": index, "problem": str(problem)})
                self._source.expect(index)
        raise AssertionError("unreachable")


class ReplacedSource(ForwardingSource):
    """A source read by number (validation): a bad sample gives way to the next good one.

    A bad sample is tried once and reported once. Nothing of it goes into the cursor: the samples
    of a validation do not depend on how far the run is.
    """

    def __init__(self, source: Source, quarantine: Quarantine) -> None:
        super().__init__(source)
        self._quarantine = quarantine
        self._filler = Filler(source, _NextOrder(len(source)), quarantine)

    def read(self, index: int, position: int) -> Item:
        """Sample `index`, or the next good one; random parts are keyed by `index` in any case."""
        filled = self._filler.fill(index, index)
        for bad in filled.bad:
            facts = {"reason": bad.reason, "sample": bad.where, "detail": bad.detail}
            log.warning("bad sample of the validation, the next one is used", extra=facts)
        self._quarantine.agree(bad.id for bad in filled.bad)
        return filled.item


@dataclass(frozen=True, slots=True)
class _NextOrder:
    """Position and index are the same; what replaces a sample is the one behind it."""

    samples: int

    def index(self, position: int) -> int:
        return position

    def replacement(self, position: int, attempt: int) -> int:
        return (position + 1 + attempt) % self.samples

    def steps_for_epochs(self, epochs: int) -> int:
        return epochs * self.samples


def none_good(bad: Sequence[BadSample], quarantined: int, samples: int) -> TooManyBadError:
    """The error of a position that no sample could fill."""
    names = "; ".join(f"{one.where} ({one.reason}: {one.detail})" for one in bad[:NAMES_SHOWN])
    reasons = by_count(one.reason for one in bad)
    what = f"{len(bad)} samples in a row cannot be used ({reasons}), for example {names}"
    if not bad:
        what = f"all that could be tried of the {samples} samples is in quarantine"
    elif len(bad) + quarantined >= samples:
        what = f"none of the {samples} samples can be used ({reasons}), for example {names}"
    return TooManyBadError(
        what,
        where=bad[0].where if bad else "the data of this run",
        fix="look at one of these files; `cogvx data check` lists everything that is wrong with "
        "a dataset (data.quarantine.first_samples sets how many may fail in a row)",
    )


def by_count(reasons: Iterable[str]) -> str:
    """`truncated 12, not_a_video 3`."""
    counts = sorted(Counter(reasons).items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{reason} {count}" for reason, count in counts)


def check_share(
    quarantined: Sequence[SampleId], seen: int, samples: int, rules: QuarantineConfig
) -> None:
    """Stop a run whose data is bad to too large a part.

    Args:
        quarantined: ids of the samples in quarantine.
        seen: positions that all ranks have used since the run began.
        samples: of the dataset: after the first epoch no new ones are seen.
        rules: `data.quarantine`.

    Raises:
        TooManyBadError: their share of the samples seen passes `max_share`.
    """
    share = len(quarantined) / max(1, min(seen, samples))
    if seen < rules.after_samples or share <= rules.max_share:
        return
    names = ", ".join("/".join(part for part in one if part) for one in quarantined[:NAMES_SHOWN])
    more = len(quarantined) - NAMES_SHOWN
    raise TooManyBadError(
        f"{len(quarantined)} of {min(seen, samples)} samples cannot be used: {share:.1%}, more "
        f"than {rules.max_share:.1%}",
        where=f"samples {names}" + (f" and {more} more" if more > 0 else ""),
        fix="`cogvx data quarantine RUN_URL` lists them: repair or remove them, or raise "
        "data.quarantine.max_share",
    )


def check_names(
    left_out: Sequence[LeftOut], videos: int, where: str, rules: QuarantineConfig
) -> None:
    """Stop before the start where the names of too many videos cannot be used.

    They are bad clips: the same share holds, from the same number of samples on. Files of kinds
    that are not read are not counted; they are only named.

    Args:
        left_out: of one folder.
        videos: of the folder that are read.
        where: the folder.
        rules: `data.quarantine`.

    Raises:
        TooManyBadError: their share passes `max_share`.
    """
    bad = [one for one in left_out if one.reason in (UNUSABLE, UNREADABLE)]
    total = videos + len(bad)
    if not bad or total < rules.after_samples or len(bad) / total <= rules.max_share:
        return
    raise TooManyBadError(
        f"{summary(bad, videos)}: more than {rules.max_share:.1%}",
        where=where,
        fix="rename or restore these files (`cogvx data check` lists them all), or raise "
        "data.quarantine.max_share",
    )
