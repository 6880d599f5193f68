from __future__ import annotations

from pathlib import Path

import pytest

from app.checkpoint.attempts import (
    AttemptRecord,
    begin_attempt,
    end_attempt,
    in_lineage,
    next_attempt,
    note_resumed,
    read_attempt,
    read_attempts,
)
from app.checkpoint.catalog import checkpoint_refs, find_newest
from app.checkpoint.layout import CheckpointRef
from app.checkpoint.reader import open_checkpoint
from app.errors import CheckpointError
from app.storage.local import LocalStorage
from tests.support.checkpoints import save


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "run")


def newest_name(storage: LocalStorage) -> str | None:
    ref = find_newest(storage)
    return ref.name if ref is not None else None


def test_a_run_without_checkpoints_has_no_newest(storage: LocalStorage) -> None:
    assert find_newest(storage) is None


def test_the_newest_is_the_one_with_the_largest_step(storage: LocalStorage, tmp_path: Path) -> None:
    for step in (9, 100, 20):
        save(storage, tmp_path / "s", step=step)

    assert newest_name(storage) == "step-0000000100.000001"
    assert find_newest(storage, skip=["step-0000000100.000001"]) == CheckpointRef(1, 20)


def damage_nothing(folder: Path) -> None:
    pass


def remove_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def cut_manifest(folder: Path) -> None:
    content = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").write_bytes(content[:-1])


def change_manifest(folder: Path) -> None:
    content = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").write_bytes(content.replace(b'"attempt":1', b'"attempt":2'))


def remove_file(folder: Path) -> None:
    (folder / "optim-00000-of-00001.safetensors").unlink()


def cut_file(folder: Path) -> None:
    path = folder / "weights-00000-of-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def rename_folder(folder: Path) -> None:
    folder.rename(folder.with_name("step-0000000999.000001"))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (damage_nothing, "step-0000000020.000001"),
        (remove_manifest, "step-0000000010.000001"),
        (cut_manifest, "step-0000000010.000001"),
        (change_manifest, "step-0000000010.000001"),
        (remove_file, "step-0000000010.000001"),
        (cut_file, "step-0000000010.000001"),
        (rename_folder, "step-0000000010.000001"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_passed_over(
    storage: LocalStorage, tmp_path: Path, damage: object, expected: str
) -> None:
    save(storage, tmp_path / "s", step=10)
    save(storage, tmp_path / "s", step=20)

    damage(tmp_path / "run" / "checkpoints" / "step-0000000020.000001")  # type: ignore[operator]

    assert newest_name(storage) == expected


def test_opening_an_unfinished_checkpoint_says_so(storage: LocalStorage, tmp_path: Path) -> None:
    save(storage, tmp_path / "s", step=20)
    remove_manifest(tmp_path / "run" / "checkpoints" / "step-0000000020.000001")

    with (
        pytest.raises(CheckpointError, match="never finished"),
        open_checkpoint(storage, CheckpointRef(1, 20)),
    ):
        pass


def test_attempts_are_numbered_from_one(storage: LocalStorage) -> None:
    assert next_attempt(storage) == 1

    first = begin_attempt(storage, {"world_size": 2})
    second = begin_attempt(storage, {"world_size": 4})

    assert (first.number, second.number, next_attempt(storage)) == (1, 2, 3)
    assert read_attempts(storage) == [first, second]
    assert first.owner != second.owner


def test_an_attempt_is_never_given_a_number_that_has_checkpoints(
    storage: LocalStorage, tmp_path: Path
) -> None:
    save(storage, tmp_path / "s", step=10, attempt=5)

    assert next_attempt(storage) == 6


def test_an_attempt_records_what_it_continued_and_how_it_ended(storage: LocalStorage) -> None:
    attempt = begin_attempt(storage, {"world_size": 2})
    attempt = note_resumed(storage, attempt, "step-0000000010.000001")
    attempt = end_attempt(storage, attempt, "SIGTERM")

    found = read_attempt(storage, attempt.number, attempt.owner)

    assert found == attempt
    assert found.decided
    assert (found.resumed_from, found.cause) == ("step-0000000010.000001", "SIGTERM")
    assert found.ended is not None


def attempt_of(number: int, resumed_from: str | None, *, decided: bool = True) -> AttemptRecord:
    return AttemptRecord(
        number=number,
        owner="00000000",
        started="",
        world={},
        decided=decided,
        resumed_from=resumed_from,
    )


def test_what_an_older_attempt_wrote_beyond_the_resumed_step_is_a_fork() -> None:
    attempts = [
        attempt_of(1, None),
        attempt_of(2, "step-0000000050.000001"),
        attempt_of(3, None, decided=False),
    ]

    assert in_lineage(CheckpointRef(1, 50), attempts)
    assert not in_lineage(CheckpointRef(1, 60), attempts)
    assert in_lineage(CheckpointRef(2, 60), attempts)


def test_an_attempt_that_started_from_nothing_ends_every_older_line() -> None:
    attempts = [attempt_of(1, None), attempt_of(2, None)]

    assert not in_lineage(CheckpointRef(1, 0), attempts)
    assert in_lineage(CheckpointRef(2, 0), attempts)


def test_a_stale_gang_cannot_move_the_newest(storage: LocalStorage, tmp_path: Path) -> None:
    begin_attempt(storage, {})
    save(storage, tmp_path / "s", step=50, attempt=1)
    second = begin_attempt(storage, {})
    note_resumed(storage, second, "step-0000000050.000001")
    save(storage, tmp_path / "s", step=90, attempt=1)  # the first gang was not dead

    assert newest_name(storage) == "step-0000000050.000001"

    save(storage, tmp_path / "s", step=60, attempt=2)

    assert newest_name(storage) == "step-0000000060.000002"
    assert len(checkpoint_refs(storage)) == 3
