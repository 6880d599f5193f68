"""One rank works, or each does: all ranks get the results, or the error that one of them raised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import app.errors
from app.distributed.rank_group import RankGroup, world
from app.errors import CogvxError, ConfigErrors


def on_rank_zero(rank: int, work: Callable[[], Any]) -> Any:
    """The result of `work` on rank 0, after a round trip through JSON, on every rank.

    Raises:
        CogvxError: on every rank, the one that `work` raised on rank 0.
    """
    answer: dict[str, Any] | None = None
    if rank == 0:
        try:
            answer = {"result": work()}
        except CogvxError as error:
            answer = {"error": error_fields(error)}
    agreed = world().broadcast_json(answer)
    if "error" in agreed:
        raise error_from_fields(agreed["error"])
    return agreed["result"]


def on_every_rank(group: RankGroup, work: Callable[[], Any]) -> list[Any]:
    """The results of `work` of all ranks of the group, small JSON values, on every one of them.

    Raises:
        CogvxError: on every rank, the one that `work` raised on the lowest rank where it did.
    """
    own: dict[str, Any] = {}
    problem: CogvxError | None = None
    try:
        own["result"] = work()
    except CogvxError as error:
        problem, own = error, {"error": error_fields(error)}
    found = group.gathered_json(own)
    failed = [rank for rank, one in enumerate(found) if "error" in one]
    if failed and failed[0] == group.rank and problem is not None:
        raise problem
    if failed:
        raise error_from_fields(found[failed[0]]["error"])
    return [one["result"] for one in found]


def error_fields(error: CogvxError) -> list[str]:
    """An error as texts for JSON."""
    # The nearest class of app.errors: it has the exit code, wherever the leaf was defined.
    kinds = (kind for kind in type(error).__mro__ if kind in _PUBLIC_ERRORS.values())
    return [next(kinds).__name__, error.what, error.where, error.fix]


def error_from_fields(texts: Sequence[str]) -> CogvxError:
    """The error that `error_fields` described."""
    name, what, where, fix = texts
    return _PUBLIC_ERRORS[name](what, where=where, fix=fix)


# The errors that can be rebuilt from three texts, by name.
_PUBLIC_ERRORS: dict[str, type[CogvxError]] = {
    name: kind
    for name, kind in vars(app.errors).items()
    if isinstance(kind, type) and issubclass(kind, CogvxError) and kind is not ConfigErrors
}
