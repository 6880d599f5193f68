"""The place of a run in its data: a few integers in every checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from app.errors import CheckpointError, ConfigError, DataError

T = TypeVar("T")
CURSOR_VERSION = 1
WHERE = "the data cursor of the checkpoint"


@dataclass(frozen=True, slots=True)
class Cursor:
    """Step `t` of the sequence that the other fields define; a resumed run continues at `t`.

    `manifest_sha256` is the fingerprint of the data: names, sizes, counts and member positions
    of every shard. `shares` holds the quotas of several weighted datasets, empty for one.
    """

    t: int
    seed: int
    lanes: int
    window: int
    batch: int
    manifest_sha256: str
    order: str = "epoch"
    shares: tuple[int, ...] = ()
    quarantined: tuple[tuple[str, str], ...] = ()  # (shard, key)
    skipped: tuple[int, ...] = ()  # steps without an update

    def to_json(self) -> dict[str, object]:
        """Plain values for state.json."""
        lists = {
            "shares": list(self.shares),
            "quarantined": [list(pair) for pair in self.quarantined],
            "skipped": list(self.skipped),
        }
        return {"format_version": CURSOR_VERSION} | asdict(self) | lists

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> Cursor:
        """Read what `to_json` wrote.

        Raises:
            CheckpointError: a field is missing, of the wrong type, or of a newer version.
        """
        values = {**_OPTIONAL, **values}
        version = values.get("format_version")
        if version != CURSOR_VERSION:
            raise CheckpointError(
                f"the data cursor has format_version {version!r}, this version reads "
                f"{CURSOR_VERSION}",
                where=WHERE,
                fix="resume with the version of cogvx that wrote the checkpoint",
            )
        return cls(
            **{name: _field(values, name, int) for name in _NUMBERS},
            manifest_sha256=_field(values, "manifest_sha256", str),
            order=_field(values, "order", str),
            shares=_entries(values, "shares", int),
            quarantined=_entries(values, "quarantined", lambda pair: (str(pair[0]), str(pair[1]))),
            skipped=_entries(values, "skipped", int),
        )

    def check_continues(self, now: Cursor) -> None:
        """Refuse to continue in another sequence than that of the checkpoint.

        Args:
            now: the cursor of the run that starts (its `t` does not count).

        Raises:
            ConfigError: seed, lanes, window, batch or weights differ; names old and new value.
            DataError: the data itself differs.
        """
        for name, fix in _SEQUENCE.items():
            old, new = getattr(self, name), getattr(now, name)
            if old != new:
                raise ConfigError(
                    f"{name} was {old} and is now {new}: this would be another sequence of "
                    "samples, in which clips repeat and others are left out",
                    where=WHERE,
                    fix=fix.format(old=old),
                )
        if self.manifest_sha256 != now.manifest_sha256:
            raise DataError(
                "the data is not the data that this run was trained on: its fingerprint was "
                f"{self.manifest_sha256[:16]} and is now {now.manifest_sha256[:16]}",
                where=WHERE,
                fix="give the same shards in the same place, or start a new run "
                "(another --run-id, with --load)",
            )


_NUMBERS = ("t", "seed", "lanes", "window", "batch")
_OPTIONAL: dict[str, object] = {"order": "epoch", "shares": [], "quarantined": [], "skipped": []}
_SEQUENCE = {
    "order": "set order back to {old}, or start a new run (another --run-id, with --load)",
    "seed": "set seed back to {old}, or start a new run (another --run-id, with --load)",
    "batch": "choose ranks, batch size and accumulation so that their product is {old}; a new "
    "batch size needs a new run (another --run-id, with --load), whose epochs start anew",
    "lanes": "set data.order.lanes back to {old}",
    "window": "set data.order.window back to {old}",
    "shares": "set train_data_weights back (draws per 1000 were {old})",
}


def _field(values: Mapping[str, object], name: str, kind: type[T]) -> T:
    value = values.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _unreadable(name, value)
    return value


def _entries(values: Mapping[str, object], name: str, read: Callable[[Any], T]) -> tuple[T, ...]:
    found = _field(values, name, list)
    try:
        return tuple(read(entry) for entry in found)
    except (TypeError, ValueError, LookupError):
        raise _unreadable(name, found) from None


def _unreadable(name: str, value: object) -> CheckpointError:
    return CheckpointError(
        f"the data cursor's {name} is {value!r}",
        where=WHERE,
        fix="the checkpoint is damaged: resume from an older one",
    )
