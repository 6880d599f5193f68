"""Endpoint, region and limits of the object storage, from the usual AWS variables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from app.errors import ConfigError

ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "S3_ENDPOINT_URL")
REGION_VARIABLES = ("AWS_REGION", "AWS_DEFAULT_REGION")
DEFAULT_REGION = "us-east-1"
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
            ConfigError: the endpoint is not a URL.
        """
        return cls(
            endpoint=_first(environment, ENDPOINT_VARIABLES),
            region=_first(environment, REGION_VARIABLES) or DEFAULT_REGION,
            ca_file=environment.get("AWS_CA_BUNDLE") or None,
        )


def _first(environment: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((environment[name] for name in names if environment.get(name)), None)
