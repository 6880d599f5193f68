"""The quarantine of one start: agreed by the ranks, listed in the bucket, logged, limited."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from app.data.left_out import why
from app.data.loader import Loader
from app.data.names import shown
from app.data.quarantine import BadSample, check_share
from app.data.sources.protocols import SampleId
from app.data.sources.views import JoinedSource
from app.distributed.rank_group import world
from app.errors import CogvxError
from app.run.attempt.folder import RunFolder
from app.run.dataset.bad_samples import UNKNOWN, joined, read_lines, write_lines
from app.training.loop import LoopState

log = logging.getLogger(__name__)

WRITE_EVERY_S = 30.0  # the whole file is written each time; saves and the end write it too
MOST_LOGGED = 20  # log lines of one step


@dataclass(slots=True)
class QuarantineKeeper:
    """What a start of a run does with bad samples; `agree` is called by every rank.

    Attributes:
        run: where the list goes.
        rank: of this process.
        loader: of the training data; finds bad samples and must not use agreed ones.
        sources: entries of `train_data`.
    """

    run: RunFolder
    rank: int
    loader: Loader
    sources: Sequence[str]
    _lines: list[dict[str, Any]] = field(default_factory=list)
    _reasons: Counter[str] = field(default_factory=Counter)
    _written: int = 0  # lines that are in the bucket
    _last_write: float = -math.inf
    _step: int = 0  # optimizer steps done

    def begin(self) -> None:
        """List what the datasets left out, and look up the reasons of the checkpoint's ids.

        Only the list and the metrics need it, so one rank does it.
        """
        if self.rank:
            return
        for one in self.loader.source.left_out():
            path = self._path(one.dataset)
            self._lines.append(self._line(path, one.shard, shown(one.key), one.reason, why(one)))
        self.write()
        self._look_up()

    def _look_up(self) -> None:
        ids = set(self.loader.quarantine.ids())
        if not ids:
            return
        try:
            listed = {
                (one.shard, one.key): one.reason for one in joined(read_lines(self.run.storage))
            }
        except CogvxError as problem:
            log.warning("the list of bad samples was not read", extra={"problem": problem.what})
            listed = {}
        self._reasons = Counter(listed.get(sample, UNKNOWN) for sample in ids)
        log.info("samples in quarantine", extra=self.metrics())

    def has_news(self) -> bool:
        """Whether this rank found a bad sample in this step."""
        return self.loader.quarantine.has_news()

    def agree(self, state: LoopState) -> None:
        """Exchange what the ranks found in the last step.

        Raises:
            TooManyBadError: their share is too large; the same on every rank.
        """
        mine = self.loader.quarantine.take_news()
        self._step = state.step
        self._keep(mine)
        everything = [
            BadSample(**value)
            for values in world().gathered_json([asdict(bad) for bad in mine])
            for value in values
        ]
        reasons: dict[SampleId, BadSample] = {}
        for bad in everything:
            reasons.setdefault(bad.id, bad)
        fresh = [reasons[sample] for sample in self.loader.quarantine.agree(reasons)]
        self._reasons.update(bad.reason for bad in fresh)
        self._log(fresh)
        if time.monotonic() - self._last_write >= WRITE_EVERY_S:
            self.write()
        self.check(state.step)

    def check(self, step: int) -> None:
        """Stop when too many of the samples that the steps before `step` saw are bad."""
        self._step = step
        quarantine, batch = self.loader.quarantine, self.loader.share.batch
        check_share(quarantine.ids(), step * batch, len(self.loader), quarantine.rules)

    def metrics(self) -> dict[str, float]:
        """The number of bad samples, and of each reason."""
        by_reason = {f"bad_samples/{name}": n for name, n in sorted(self._reasons.items())}
        return {"bad_samples": len(self.loader.quarantine), **by_reason}

    def write(self) -> None:
        """Write this rank's list to the bucket; after a failure it is written later."""
        if len(self._lines) == self._written:
            return
        self._last_write = time.monotonic()
        try:
            write_lines(self.run.storage, self.run.attempt.number, self.rank, self._lines)
            self._written = len(self._lines)
        except CogvxError as problem:
            log.warning("the list of bad samples was not written", extra={"problem": problem.what})

    def close(self) -> None:
        """Keep also what was found in an unfinished step."""
        self._step += 1
        self._keep(self.loader.quarantine.take_news())
        self.write()

    def _keep(self, found: Sequence[BadSample]) -> None:
        for bad in found:
            source = self.loader.source
            which = source.which(bad.index) if isinstance(source, JoinedSource) else 0
            line = self._line(self._path(which), bad.shard, bad.key, bad.reason, bad.detail)
            self._lines.append({**line, "sha256": bad.sha256, "position": bad.position})

    def _path(self, which: int) -> str:
        """The entry of `train_data` that a dataset comes from."""
        return self.sources[which] if which < len(self.sources) else ""

    def _line(self, source: str, shard: str, key: str, reason: str, detail: str) -> dict[str, Any]:
        return {
            "source": source,
            "shard": shard,
            "key": key,
            "reason": reason,
            "detail": detail,
            "step": self._step,
            "attempt": self.run.attempt.number,
            "rank": self.rank,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def _log(self, fresh: Sequence[BadSample]) -> None:
        if self.rank:
            return
        for bad in fresh[:MOST_LOGGED]:
            extra = {"reason": bad.reason, "sample": bad.where, "detail": bad.detail}
            log.warning("bad sample, replaced by another", extra=extra)
        if len(fresh) > MOST_LOGGED:
            log.warning("more bad samples", extra={"samples": len(fresh) - MOST_LOGGED})
