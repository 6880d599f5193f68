"""Every error that a user may see: what is wrong, where, and how to fix it.

The command line prints a `CogvxError` in three lines, without a traceback, and returns its
`exit_code`. Any other exception is a bug in cogvx and keeps its traceback (exit code 1).

Exit codes below 128 end a job for good; from 128 on the operator makes a new pod
(docs/exit_codes.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class CogvxError(Exception):
    """An error whose cause is outside the code: configuration, data, weights, storage, cluster."""

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, where: str, fix: str) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.what}\n  where: {self.where}\n  fix:   {self.fix}"

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions with keyword-only arguments do not pickle by default, and these cross
        # process boundaries (decoder, workers).
        return (_rebuild, (type(self), self.what, self.where, self.fix))


def _rebuild(kind: type[CogvxError], what: str, where: str, fix: str) -> CogvxError:
    return kind(what, where=where, fix=fix)


class UsageError(CogvxError):
    """A flag that does not exist or cannot be read."""

    exit_code = 2


class DataError(CogvxError):
    """Bad data: a shard, clip, checkpoint or weight file whose content is wrong."""

    exit_code = 65


class ShapeError(DataError):
    """A tensor whose shape does not fit."""


class WeightsError(DataError):
    """A weight file that does not fit the model."""


class CheckpointError(DataError):
    """A checkpoint that is damaged or does not fit the run."""


class InputMissingError(CogvxError):
    """A bucket, shard, weight file or folder that does not exist."""

    exit_code = 66


class AccessDeniedError(CogvxError):
    """The storage or the cluster denied permission."""

    exit_code = 77


class ConfigError(CogvxError):
    """A configuration that cannot be run."""

    exit_code = 78


class ConfigErrors(ConfigError):
    """All mistakes of a configuration, in the order of the files."""

    def __init__(self, errors: Sequence[CogvxError]) -> None:
        self.errors = tuple(errors)
        first = self.errors[0]
        super().__init__(first.what, where=first.where, fix=first.fix)

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.errors)

    def __reduce__(self) -> tuple[object, ...]:
        return (ConfigErrors, (self.errors,))


class RetryableError(CogvxError):
    """A cause that a new start may fix: a lost peer, a storage outage, a broken node."""

    exit_code = 138


class PreemptedError(CogvxError):
    """SIGTERM: the pod must go; the run continues elsewhere."""

    exit_code = 143


class InterruptedRunError(CogvxError):
    """SIGINT: somebody stopped the run, which continues when it is started again."""

    exit_code = 130
