"""The end of a run: what it names, and until when it counts."""

from __future__ import annotations

from pathlib import Path

from app.checkpoint.attempts import AttemptRecord
from app.checkpoint.completion import Completion, read_completion, write_completion
from app.checkpoint.layout import CheckpointRef
from app.storage.local import LocalStorage

END = Completion(
    step=60,
    version="0.1.0",
    checkpoint="step-0000000060.000002",
    attempt=2,
    owner="3f9c2a1b",
    last_attempt=3,
    config_sha256="c" * 64,
)


def attempt_of(number: int, *, decided: bool = True) -> AttemptRecord:
    return AttemptRecord(number=number, owner="00000000", started="", world={}, decided=decided)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    assert read_completion(storage) is None

    write_completion(storage, END)

    assert read_completion(storage) == END
    assert END.ref == CheckpointRef(2, 60)


def test_it_counts_until_an_attempt_began_that_it_did_not_know() -> None:
    known = [attempt_of(number) for number in (1, 2, 3)]

    assert END.counts(known)
    assert END.counts([*known, attempt_of(4, decided=False)])
    assert not END.counts([*known, attempt_of(4)])


def test_a_file_of_an_earlier_version_has_the_step_only(tmp_path: Path) -> None:
    (tmp_path / "complete.json").write_text('{"format_version":1,"step":60,"version":"0.1.0"}')

    found = read_completion(LocalStorage(tmp_path))

    assert found == Completion(step=60, version="0.1.0")
    assert found.ref is None
    assert found.counts([attempt_of(1), attempt_of(2)])
