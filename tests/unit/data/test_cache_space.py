from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from app.data.cache_space import CacheSpace, held, is_free

SIZE = 100


def nothing() -> tuple[set[str], ...]:
    return (set(),)


def add(space: CacheSpace, folder: Path, name: str) -> bool:
    """As a download does: reserve, write, keep."""
    if not space.reserve(name, SIZE, nothing):
        return False
    part = folder / f"{name}.part"
    part.write_bytes(bytes(SIZE))
    space.keep(name, part)
    return True


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix == ".obj")


def names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.obj"))


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The folders that were listed."""
    seen: list[Any] = []
    scandir = os.scandir

    def counted(path: Any) -> Any:
        seen.append(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counted)
    return seen


def test_the_sum_is_that_of_the_files_whatever_happens(tmp_path: Path) -> None:
    space = CacheSpace(tmp_path, 10 * SIZE)
    for number in range(15):
        assert add(space, tmp_path, f"{number:02}")
    space.reserve("failed", SIZE, nothing)
    space.release("failed")
    space.remove(tmp_path / "14.obj")
    space.remove(tmp_path / "14.obj")

    assert (tmp_path / "evict.lock").read_text() == str(on_disk(tmp_path))
    assert on_disk(tmp_path) == 8 * SIZE
    assert names(tmp_path) == [f"{number:02}" for number in range(6, 14)]


def test_a_full_folder_is_listed_once_for_many_downloads(
    tmp_path: Path, listings: list[Any]
) -> None:
    space = CacheSpace(tmp_path, 100 * SIZE)
    for number in range(190):
        assert add(space, tmp_path, f"{number:03}")

    # At the first use, when it is full, and when the hundred files of that time are gone.
    assert len(listings) <= 3
    assert names(tmp_path) == [f"{number:03}" for number in range(90, 190)]


def test_a_process_that_died_in_a_change_makes_the_next_one_count(tmp_path: Path) -> None:
    space = CacheSpace(tmp_path, 3 * SIZE)
    add(space, tmp_path, "a")
    add(space, tmp_path, "b")
    (tmp_path / "evict.lock").write_text("")
    (tmp_path / "c.obj").write_bytes(bytes(SIZE))
    os.utime(tmp_path / "a.obj", (1, 1))

    assert add(CacheSpace(tmp_path, 3 * SIZE), tmp_path, "d")

    assert names(tmp_path) == ["b", "c", "d"]


def test_a_file_that_was_read_since_the_listing_is_kept(tmp_path: Path) -> None:
    space = CacheSpace(tmp_path, 3 * SIZE)
    for age, name in enumerate("abc"):
        add(space, tmp_path, name)
        os.utime(tmp_path / f"{name}.obj", (age + 1, age + 1))
    add(space, tmp_path, "d")  # lists; a goes
    os.utime(tmp_path / "b.obj")

    add(space, tmp_path, "e")

    assert names(tmp_path) == ["b", "d", "e"]


def test_protected_names_stay_and_a_refusal_reserves_nothing(tmp_path: Path) -> None:
    space = CacheSpace(tmp_path, 2 * SIZE)
    add(space, tmp_path, "a")
    add(space, tmp_path, "b")

    assert not space.reserve("c", SIZE, lambda: ({"a", "b"},))
    assert space.reserve("c", SIZE, lambda: ({"a", "b"}, {"b"}, set()))

    assert names(tmp_path) == ["b"]
    assert not (tmp_path / "a.reserved").exists()


def test_a_lock_file_goes_with_its_holder_and_waiters_come_one_by_one(tmp_path: Path) -> None:
    path, inside, most = tmp_path / "x.lock", 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(50):
            with held(path):
                inside += 1
                most = max(most, inside)
                assert not is_free(path)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert most == 1
    assert list(tmp_path.iterdir()) == []
    path.touch()
    assert is_free(path)
    assert not path.exists()
