from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.errors import ConfigError, DataError
from app.storage.local import LocalStorage
from app.storage.opening import open_storage, split_s3_url
from app.storage.s3 import S3Storage
from app.storage.settings import StorageSettings
from tests.support.s3_servers import set_environment

POINT = "arn:aws:s3:eu-west-1:123456789012:accesspoint/my-data"


def test_a_path_is_a_local_storage(tmp_path: Path) -> None:
    for url in (str(tmp_path), f"file://{tmp_path}"):
        storage = open_storage(url)
        assert isinstance(storage, LocalStorage)
        assert storage.url == str(tmp_path)


@pytest.mark.parametrize(
    ("url", "root"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://my-bucket.x/a/b/", "s3://my-bucket.x/a/b"),
        ("S3://bucket/A b", "s3://bucket/A b"),
        ("s3://Old_Bucket.2012/a", "s3://Old_Bucket.2012/a"),
        (f"s3://{'x' * 255}/a", f"s3://{'x' * 255}/a"),
        (f"s3://{POINT}/a/b", f"s3://{POINT}/a/b"),
        (f"s3://{POINT}", f"s3://{POINT}"),
    ],
)
def test_an_s3_url_is_a_bucket_and_a_prefix(
    url: str, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, {})
    storage = open_storage(url)

    assert isinstance(storage, S3Storage)
    assert storage.url == root


@pytest.mark.parametrize(
    "url",
    ["", "gs://b/x", "ftp://h/x", "pipe:curl x", "s3:/bucket/x", "s3://", "s3://B/x", "s3://a"],
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        open_storage(url)


@pytest.mark.parametrize(
    "url",
    [
        "s3://arn:aws:s3:::bucket/x",
        "s3://arn:aws:s3-outposts:eu-west-1:123456789012:outpost/op-1/accesspoint/x",
        "s3://arn:aws:sqs:eu-west-1:123456789012:queue",
        "s3://-bucket/x",
        "s3://buck et/x",
        f"s3://{'x' * 256}/a",
    ],
)
def test_other_names_of_buckets_are_refused_with_the_forms_that_work(url: str) -> None:
    with pytest.raises(ConfigError, match="not a valid bucket name") as caught:
        open_storage(url)

    assert "accesspoint" in caught.value.fix


def test_the_key_after_an_access_point() -> None:
    assert split_s3_url(f"s3://{POINT}/a/b.tar") == (POINT, "a/b.tar")


def test_a_colon_further_on_is_part_of_a_path(tmp_path: Path) -> None:
    assert open_storage("./run:1").url == "run:1"
    assert open_storage(f"{tmp_path}/a:b").url == f"{tmp_path}/a:b"


def test_a_prefix_with_dots_is_refused() -> None:
    with pytest.raises(DataError):
        open_storage("s3://bucket/a/../b")


def test_a_password_in_a_url_is_not_repeated() -> None:
    with pytest.raises(ConfigError) as bucket:
        open_storage("s3://user:hunter2@bucket/x")
    with pytest.raises(ConfigError) as endpoint:
        StorageSettings.from_environment({"AWS_ENDPOINT_URL": "https://user:hunter2@host"})

    assert "hunter2" not in str(bucket.value)
    assert "hunter2" not in str(endpoint.value)


def test_a_local_read_only_folder_is_no_place_for_a_new_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")

    open_storage(str(tmp_path / "new" / "run")).check_reachable()
    with pytest.raises(Exception, match="not a folder") as caught:
        open_storage(str(tmp_path / "file" / "run")).check_reachable()

    assert getattr(caught.value, "exit_code", None) == 66
    assert os.listdir(tmp_path) == ["file"]
