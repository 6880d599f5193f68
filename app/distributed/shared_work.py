"""Work that the ranks of a job do once for all of them, instead of each for itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from app.distributed.agreement import on_every_rank, on_rank_zero
from app.distributed.rank_group import ALONE, RankGroup

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SharedWork:
    """All ranks of a job, which call the same methods in the same order; or a process alone."""

    group: RankGroup = ALONE

    @property
    def is_alone(self) -> bool:
        return self.group.size == 1

    def once(self, work: Callable[[], Any]) -> Any:
        """The result of `work`, a JSON value, which the first rank does.

        Raises:
            CogvxError: of `work`, on every rank.
        """
        return work() if self.is_alone else on_rank_zero(self.group.rank, work)

    def divided(
        self, items: Sequence[T], work: Callable[[Sequence[T]], Iterable[Any]]
    ) -> list[Any]:
        """The results of `work`, JSON values, for all items in their order; each rank does a part.

        Args:
            work: results for some of the items, in their order.

        Raises:
            CogvxError: of `work` of one rank, on every rank.
        """
        if self.is_alone:
            return list(work(items))
        size = self.group.size
        own = items[self.group.rank :: size]
        parts = on_every_rank(self.group, lambda: list(work(own)))
        return [parts[number % size][number // size] for number in range(len(items))]
