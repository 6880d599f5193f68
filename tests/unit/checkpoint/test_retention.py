from __future__ import annotations

from pathlib import Path

import pytest

from app.checkpoint.catalog import checkpoint_refs, find_newest
from app.checkpoint.layout import CheckpointRef
from app.checkpoint.retention import apply_retention, superfluous, sweep
from app.errors import RetryableError
from app.storage.local import LocalStorage
from tests.support.checkpoints import save


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "run")


def steps(storage: LocalStorage) -> list[int]:
    return [ref.step for ref in checkpoint_refs(storage)]


REFS = [CheckpointRef(1, step) for step in range(100, 1100, 100)]


@pytest.mark.parametrize(
    ("keep_last", "protected", "kept"),
    [
        (1, [], [1000]),
        (3, [], [800, 900, 1000]),
        (1, ["step-0000000300.000001"], [300, 1000]),
        (50, [], list(range(100, 1100, 100))),
    ],
)
def test_the_last_and_the_protected_are_kept(
    keep_last: int, protected: list[str], kept: list[int]
) -> None:
    gone = superfluous(REFS[::-1], keep_last, protected)

    assert [ref.step for ref in REFS if ref not in gone] == kept


def test_deleted_checkpoints_leave_no_object(storage: LocalStorage, tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save(storage, tmp_path / "s", step=step)

    gone = apply_retention(storage, 1, ["step-0000000020.000001"])

    assert gone == ["step-0000000010.000001"]
    assert steps(storage) == [20, 30]
    assert not [entry for entry in storage.list() if "step-0000000010" in entry.key]


def test_unfinished_checkpoints_do_not_count_as_kept(storage: LocalStorage, tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save(storage, tmp_path / "s", step=step)
    storage.delete([CheckpointRef(1, 30).manifest])

    apply_retention(storage, 1)

    assert find_newest(storage) == CheckpointRef(1, 20)
    assert steps(storage) == [20, 30]


class FailingStorage(LocalStorage):
    """Deletes the first object it is asked to, then no more."""

    deletions = 0

    def delete(self, keys: object) -> None:
        self.deletions += 1
        if self.deletions > 1:
            raise RetryableError("no answer", where="storage", fix="wait")
        super().delete(keys)  # type: ignore[arg-type]


def test_a_deletion_that_stops_half_way_leaves_an_absent_checkpoint(
    tmp_path: Path,
) -> None:
    whole = LocalStorage(tmp_path / "run")
    for step in (10, 20):
        save(whole, tmp_path / "s", step=step)

    gone = apply_retention(FailingStorage(tmp_path / "run"), 1)

    assert gone == []
    assert find_newest(whole) == CheckpointRef(1, 20)
    assert find_newest(whole, skip=["step-0000000020.000001"]) is None
    assert steps(whole) == [10, 20]


def test_the_sweep_takes_what_older_attempts_left_and_nothing_else(
    storage: LocalStorage, tmp_path: Path
) -> None:
    for step, attempt in ((10, 1), (20, 1), (30, 2), (40, 3)):
        save(storage, tmp_path / "s", step=step, attempt=attempt)
    for ref in (CheckpointRef(1, 20), CheckpointRef(2, 30), CheckpointRef(3, 40)):
        storage.delete([ref.manifest])
    parts = [
        tmp_path / "run" / "checkpoints" / "step-0000000010.000001" / ".x.part-12-0123abcd",
        tmp_path / "run" / "checkpoints" / "step-0000000040.000003" / ".x.part-12-0123abcd",
        tmp_path / "run" / ".progress.json.part-12-0123abcd",
    ]
    for part in parts:
        part.write_bytes(b"half")

    gone = sweep(storage, attempt=3)

    assert gone == [
        "step-0000000020.000001",
        "step-0000000030.000002",
        "checkpoints/step-0000000010.000001/x",
    ]
    assert steps(storage) == [10, 40]
    assert [part.exists() for part in parts] == [False, True, True]
