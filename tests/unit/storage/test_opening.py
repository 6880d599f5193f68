from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.errors import ConfigError, DataError
from app.storage.keys import check_key, check_own_key
from app.storage.local import LocalStorage
from app.storage.opening import open_storage
from app.storage.s3 import S3Storage
from app.storage.s3_bulk import client_options
from app.storage.settings import StorageSettings


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
    ],
)
def test_an_s3_url_is_a_bucket_and_a_prefix(url: str, root: str) -> None:
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


ALL = {
    "AWS_ENDPOINT_URL_S3": "http://first:1",
    "AWS_ENDPOINT_URL": "http://second:2",
    "S3_ENDPOINT_URL": "http://third:3",
}


@pytest.mark.parametrize(
    ("unset", "endpoint"),
    [
        ([], "http://first:1"),
        (["AWS_ENDPOINT_URL_S3"], "http://second:2"),
        (["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"], "http://third:3"),
        (list(ALL), None),
    ],
)
def test_the_endpoint_is_the_first_that_is_set(unset: list[str], endpoint: str | None) -> None:
    environment = {name: "" if name in unset else value for name, value in ALL.items()}

    assert StorageSettings.from_environment(environment).endpoint == endpoint


def test_the_region_has_a_default() -> None:
    both = {"AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "us-west-2"}

    assert StorageSettings.from_environment(both).region == "eu-west-1"
    assert StorageSettings.from_environment({"AWS_DEFAULT_REGION": "x-1"}).region == "x-1"
    assert StorageSettings.from_environment({}).region == "us-east-1"


@pytest.mark.parametrize("endpoint", ["minio:9000", "ftp://host", "http://", "http://h:x"])
def test_an_endpoint_must_be_a_url(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="endpoint"):
        StorageSettings(endpoint=endpoint)


def test_an_own_endpoint_is_addressed_by_path() -> None:
    own = client_options(StorageSettings(endpoint="http://minio:9000"))
    amazon = client_options(StorageSettings())

    assert own["s3"] == {"addressing_style": "path"}
    assert amazon["s3"] == {"addressing_style": "auto"}
    assert own["retries"]["total_max_attempts"] == 1
    assert own["response_checksum_validation"] == "when_required"


@pytest.mark.parametrize("key", ["a", "a/b.tar", "Ä ö/50%+#?.mp4", "..a/b..", "-x"])
def test_sane_keys_are_read(key: str) -> None:
    assert check_key(key, "x") == key


@pytest.mark.parametrize(
    "key", ["", "/", "a/", "..", "a/..", "a/./b", "a\nb", "x" * 1025, "ä" * 600]
)
def test_other_keys_are_refused(key: str) -> None:
    with pytest.raises(DataError):
        check_key(key, "x")


def test_our_keys_are_narrower() -> None:
    assert check_own_key("checkpoints/step-1.2/a_b.json", "x") == "checkpoints/step-1.2/a_b.json"
    with pytest.raises(DataError):
        check_own_key("Checkpoints/x", "x")


def test_a_local_read_only_folder_is_no_place_for_a_new_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")

    open_storage(str(tmp_path / "new" / "run")).check_reachable()
    with pytest.raises(Exception, match="not a folder") as caught:
        open_storage(str(tmp_path / "file" / "run")).check_reachable()

    assert getattr(caught.value, "exit_code", None) == 66
    assert os.listdir(tmp_path) == ["file"]
