"""Which AWS variables count, in which order, and which values and files are refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.errors import ConfigError
from app.storage.settings import StorageSettings, given_by, prepare, tls_context
from tests.support.certificates import self_signed

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


def test_the_authority_for_tls_is_read() -> None:
    assert StorageSettings.from_environment({"AWS_CA_BUNDLE": "/ca.pem"}).ca_file == "/ca.pem"
    assert StorageSettings.from_environment({"AWS_CA_BUNDLE": ""}).ca_file is None


def test_the_payer_is_the_requester_where_the_variable_says_so() -> None:
    assert StorageSettings.from_environment({"AWS_REQUEST_PAYER": "Requester"}).requester_pays
    assert not StorageSettings.from_environment({}).requester_pays
    assert not StorageSettings.from_environment({"AWS_REQUEST_PAYER": ""}).requester_pays
    with pytest.raises(ConfigError, match="requester") as caught:
        StorageSettings.from_environment({"AWS_REQUEST_PAYER": "true"})
    assert caught.value.where == "AWS_REQUEST_PAYER"


def test_hosts_of_redirects_are_a_list() -> None:
    given = {"COGVX_REDIRECT_HOSTS": "cdn.example.com, Other.example.com,"}

    hosts = StorageSettings.from_environment(given).redirect_hosts

    assert hosts == ("cdn.example.com", "other.example.com")
    assert StorageSettings.from_environment({}).redirect_hosts == ()


KEYS = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "hunter2"}
ROLE = {"AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/x"}


@pytest.mark.parametrize(
    "name",
    [
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
        "S3_ENDPOINT_URL",
        "AWS_PROFILE",
        "AWS_ROLE_ARN",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_EC2_METADATA_SERVICE_ENDPOINT",
        "AWS_REQUEST_PAYER",
    ],
)
@pytest.mark.parametrize("blanks", [("", "\n"), (" ", ""), ("\t", "\r\n")])
def test_blanks_around_a_value_are_removed_with_one_line(
    name: str, blanks: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    environment = {**KEYS, name: f"{blanks[0]}value-1{blanks[1]}"}

    prepare(environment)
    prepare(environment)

    assert environment == {**KEYS, name: "value-1"}
    (record,) = caplog.records
    assert name in record.getMessage()
    assert "value-1" not in record.getMessage()


def test_files_are_named_without_blanks_too(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t")
    environment = {**ROLE, "AWS_WEB_IDENTITY_TOKEN_FILE": f"{tmp_path}/token\n"}

    prepare(environment)

    assert environment["AWS_WEB_IDENTITY_TOKEN_FILE"] == f"{tmp_path}/token"


def test_an_empty_variable_is_unset_without_a_line(caplog: pytest.LogCaptureFixture) -> None:
    environment = {**KEYS, "AWS_PROFILE": "", "AWS_REGION": " \n", "OTHER": ""}

    prepare(environment)

    assert environment == {**KEYS, "OTHER": ""}
    assert [record.getMessage()[:10] for record in caplog.records] == ["AWS_REGION"]


def test_other_variables_stay_as_they_are() -> None:
    environment = {"HOME": " /root\n", "S3_OTHER": "x\n"}

    prepare(environment)

    assert environment == {"HOME": " /root\n", "S3_OTHER": "x\n"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_SECRET_ACCESS_KEY", "hunter2\nhunter2"),  # base64 that was wrapped
        ("AWS_ACCESS_KEY_ID", "hunter2 hunter2"),
        ("AWS_ACCESS_KEY_ID", "“hunter2”"),
        ("AWS_SESSION_TOKEN", "hunter2\rhunter2"),
        ("AWS_REGION", "eu west 1 hunter2"),
        ("AWS_ENDPOINT_URL", "http://hunter2 :9000"),
        ("AWS_PROFILE", "hunter2\tx"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name_only(name: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        prepare({**KEYS, name: value})

    assert caught.value.exit_code == 78
    assert caught.value.where == name
    assert "hunter2" not in str(caught.value)


def test_a_profile_and_a_path_may_have_blanks_inside(tmp_path: Path) -> None:
    (tmp_path / "a b").write_text("[default]")

    prepare({"AWS_PROFILE": "my team", "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "a b")})


def test_a_key_needs_its_secret() -> None:
    with pytest.raises(ConfigError, match="AWS_SECRET_ACCESS_KEY is not"):
        prepare({"AWS_ACCESS_KEY_ID": "id"})


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", None, "no such file"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", b"\n", "is empty"),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", None, "no such file"),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", b"hunter2\n", "line break"),
        ("AWS_SHARED_CREDENTIALS_FILE", None, "no such file"),
        ("AWS_SHARED_CREDENTIALS_FILE", b"\xff\xfe", "is not text"),
        ("AWS_CONFIG_FILE", b"\xff\xfe", "is not text"),
        ("AWS_CA_BUNDLE", None, "no such file"),
        ("AWS_CA_BUNDLE", b"hunter2", "no certificate"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_its_variable(
    name: str, content: bytes | None, says: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "file").write_bytes(content)

    with pytest.raises(ConfigError, match=says) as caught:
        prepare({name: str(tmp_path / "file")})

    assert caught.value.exit_code == 78
    assert name in caught.value.what
    assert caught.value.where == str(tmp_path / "file")
    assert "hunter2" not in str(caught.value)


def test_a_folder_in_place_of_a_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a directory"):
        prepare({"AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path)})


def test_files_that_keys_take_precedence_over_need_not_be_there(tmp_path: Path) -> None:
    missing = str(tmp_path / "none")

    prepare({**KEYS, **ROLE, "AWS_WEB_IDENTITY_TOKEN_FILE": missing})
    prepare({**KEYS, "AWS_SHARED_CREDENTIALS_FILE": missing, "AWS_CONFIG_FILE": os.devnull})


def test_an_authority_may_be_a_file_or_a_folder(tmp_path: Path) -> None:
    self_signed(tmp_path)

    assert tls_context(str(tmp_path / "ca.pem")).cert_store_stats()["x509"] == 1
    tls_context(str(tmp_path))
    tls_context(None)


def test_the_variable_that_gives_a_setting() -> None:
    names = ("A", "B")

    assert given_by({"A": "", "B": "x"}, names) == "B"
    assert given_by({}, names) == "A or B"
