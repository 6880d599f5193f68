"""Endpoint, region and limits of the object storage, from the usual AWS variables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from app.errors import ConfigError
from app.storage.environment import CA_VARIABLE, ENDPOINT_VARIABLES, REGION_VARIABLES

DEFAULT_REGION = "us-east-1"
PAYER_VARIABLE = "AWS_REQUEST_PAYER"  # the name that GDAL gave it
REDIRECTS_VARIABLE = "COGVX_REDIRECT_HOSTS"
MIB = 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class StorageSettings:
    """Settings of every client of one process. No credentials: the clients find those."""

    endpoint: str | None = None  # None: AWS itself
    region: str = DEFAULT_REGION
    ca_file: str | None = None  # authority for TLS; AWS_CA_BUNDLE
    deadline_s: float = 300.0  # one operation, retries included
    download_streams: int = 4
    upload_streams: int = 4
    range_bytes: int = 8 * MIB
    part_bytes: int = 16 * MIB  # grows to stay below 10,000 parts
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 20.0
    slow_bytes_per_s: int = 64 * 1024  # below this for `slow_window_s`: a new connection
    slow_window_s: float = 20.0
    requester_pays: bool = False  # the account of the credentials pays for requests and traffic
    redirect_hosts: tuple[str, ...] = ()  # over http(s), beside the host that is asked
    small_object_bytes: int = 512 * MIB  # largest object read whole over http(s)

    def __post_init__(self) -> None:
        if self.endpoint is None:
            return
        try:
            parts = urlsplit(self.endpoint)
            fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            fits = False
        # The text is not repeated: people put passwords into URLs.
        if not fits or "@" in self.endpoint:
            raise ConfigError(
                "the storage endpoint is not a URL of the form http(s)://host[:port]",
                where=" or ".join(ENDPOINT_VARIABLES),
                fix="write for example https://minio.example.com:9000, without user or password",
            )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> StorageSettings:
        """Settings from the environment's variables; an empty variable counts as unset.

        Raises:
            ConfigError: the endpoint is not a URL, or the payer has another value.
        """
        return cls(
            endpoint=_first(environment, ENDPOINT_VARIABLES),
            region=_first(environment, REGION_VARIABLES) or DEFAULT_REGION,
            ca_file=environment.get(CA_VARIABLE) or None,
            requester_pays=_payer(environment.get(PAYER_VARIABLE, "")),
            redirect_hosts=tuple(
                host.strip().lower()
                for host in environment.get(REDIRECTS_VARIABLE, "").split(",")
                if host.strip()
            ),
        )


def _payer(value: str) -> bool:
    if value.lower() not in ("", "requester", "bucketowner"):
        raise ConfigError(
            "the payer of requests is not 'requester'",
            where=PAYER_VARIABLE,
            fix=f"set {PAYER_VARIABLE}=requester, or unset it where the bucket's owner pays",
        )
    return value.lower() == "requester"


def _first(environment: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((environment[name] for name in names if environment.get(name)), None)
