from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from app.storage.local import LocalStorage
from app.storage.objects import ObjectMissingError, Upload


def test_a_failed_write_leaves_the_old_object_and_no_remains(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "root")
    storage.write_small("a.json", b"old")

    with pytest.raises(TypeError):
        storage.write_small("a.json", "not bytes")  # type: ignore[arg-type]

    assert storage.read_small("a.json") == b"old"
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["a.json"]


KILLED = """
import os, sys
from pathlib import Path
from app.storage.local import LocalStorage
os.replace = lambda *_: os._exit(9)
LocalStorage(Path(sys.argv[1])).write_small("checkpoints/x.bin", b"new")
"""


def test_a_killed_writer_leaves_an_unfinished_upload_only(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.write_small("checkpoints/x.bin", b"old")

    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    uploads = list(storage.list_uploads("checkpoints/"))

    assert killed.returncode == 9
    assert storage.read_small("checkpoints/x.bin") == b"old"
    assert [entry.key for entry in storage.list()] == ["checkpoints/x.bin"]
    assert [upload.key for upload in uploads] == ["checkpoints/x.bin"]

    storage.abort_upload(uploads[0])

    assert list(storage.list_uploads()) == []
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["x.bin"]


def test_aborting_what_is_not_there_is_fine(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)

    storage.abort_upload(Upload("a/b", "12-01234567"))

    assert list(storage.list_uploads()) == []


def test_a_folder_is_no_object(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.write_small("a/b", b"x")

    for call in (storage.stat, storage.read_small):
        with pytest.raises(ObjectMissingError):
            call("a")


def test_linked_folders_are_listed_only_where_that_is_asked_for(tmp_path: Path) -> None:
    """A run's folder is swept: a link in it must not lead outside."""
    for place in ("outside", "root"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "a.bin").write_bytes(b"x")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "outside")

    plain, followed = (
        [entry.key for entry in LocalStorage(tmp_path / "root", follow_links=links).list()]
        for links in (False, True)
    )

    assert plain == ["a.bin"]
    assert followed == ["a.bin", "link/a.bin"]
