"""The place of a run in its data: a few integers in every checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from app.errors import CheckpointError, ConfigError, DataError

CURSOR_VERSION = 1
WHERE = "the data cursor of the checkpoint"


@dataclass(frozen=True, slots=True)
class Cursor:
    """Step `t` of the sequence that the other fields define; resuming means going on at `t`.

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
        return {
            "format_version": CURSOR_VERSION,
            "t": self.t,
            "seed": self.seed,
            "lanes": self.lanes,
            "window": self.window,
            "batch": self.batch,
            "manifest_sha256": self.manifest_sha256,
            "order": self.order,
            "shares": list(self.shares),
            "quarantined": [list(pair) for pair in self.quarantined],
            "skipped": list(self.skipped),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> Cursor:
        """Read what `to_json` wrote.

        Raises:
            CheckpointError: a field is missing, of the wrong type, or of a newer version.
        """
        version = values.get("format_version")
        if version != CURSOR_VERSION:
            raise CheckpointError(
                f"the data cursor has format_version {version!r}, this version reads "
                f"{CURSOR_VERSION}",
                where=WHERE,
                fix="resume with the version of cogvx that wrote the checkpoint",
            )
        return cls(
            **{name: _whole(values, name) for name in ("t", "seed", "lanes", "window", "batch")},
            manifest_sha256=_text(values, "manifest_sha256"),
            order=_text(values, "order") if "order" in values else "epoch",
            shares=tuple(int(share) for share in _list(values, "shares")),
            quarantined=tuple((str(s), str(k)) for s, k in _list(values, "quarantined")),
            skipped=tuple(int(step) for step in _list(values, "skipped")),
        )

    def check_continues(self, now: Cursor) -> None:
        """Refuse to go on in another sequence than the one that the checkpoint was in.

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


_SEQUENCE = {
    "order": "set order back to {old}, or start a new run (another --run-id, with --load)",
    "seed": "set seed back to {old}, or start a new run (another --run-id, with --load)",
    "batch": "choose ranks, batch size and accumulation so that their product is {old}; a new "
    "batch size needs a new run (another --run-id, with --load), whose epochs start anew",
    "lanes": "set data.order.lanes back to {old}",
    "window": "set data.order.window back to {old}",
    "shares": "set train_data_weights back (draws per 1000 were {old})",
}


def _whole(values: Mapping[str, object], name: str) -> int:
    value = values.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _unreadable(name, value)
    return value


def _text(values: Mapping[str, object], name: str) -> str:
    value = values.get(name)
    if not isinstance(value, str):
        raise _unreadable(name, value)
    return value


def _list(values: Mapping[str, object], name: str) -> list:
    value = values.get(name, [])
    if not isinstance(value, list):
        raise _unreadable(name, value)
    return value


def _unreadable(name: str, value: object) -> CheckpointError:
    return CheckpointError(
        f"the data cursor's {name} is {value!r}",
        where=WHERE,
        fix="the checkpoint is damaged: resume from an older one",
    )
