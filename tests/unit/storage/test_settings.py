"""Which AWS variables count, and in which order."""

from __future__ import annotations

import pytest

from app.errors import ConfigError
from app.storage.settings import StorageSettings

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
