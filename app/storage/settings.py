"""Endpoint, region and limits of the object storage, from the usual AWS variables.

The variables are made usable, or refused by name, before a request: a newline at the end of a key
(a Secret made by `echo key | base64`) or a file that is not there fails inside the client
libraries like a network that is down, and would be retried.
"""

from __future__ import annotations

import logging
import os
import re
import ssl
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from app.errors import ConfigError

log = logging.getLogger(__name__)

ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "S3_ENDPOINT_URL")
REGION_VARIABLES = ("AWS_REGION", "AWS_DEFAULT_REGION")
CA_VARIABLE = "AWS_CA_BUNDLE"
_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_TOKENS = ("AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN")
# These become part of a header or of a host name, which take no blank and ASCII only.
_ONE_WORD = frozenset({_KEYS[0], *_TOKENS, *REGION_VARIABLES, *ENDPOINT_VARIABLES})
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PROFILE_FILES = ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE")
# Where the credentials come from when there are no keys; each names a file that must be there.
_SOURCE_FILES = (
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
)
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


def prepare(environment: MutableMapping[str, str]) -> None:
    """Remove blanks around the values, and check values and files, without any request.

    Args:
        environment: this process's; a variable that is empty or blank is removed, because the
            client libraries take an empty profile or region for a name.

    Raises:
        ConfigError: names the variable, never its value.
    """
    for name in sorted(environment):
        if name.startswith("AWS_") or name in ENDPOINT_VARIABLES:
            _tidy(environment, name)
    key, secret = _KEYS
    if key in environment and secret not in environment:
        raise ConfigError(
            f"{key} is set and {secret} is not",
            where=secret,
            fix="set both, or neither where another source gives the credentials",
        )
    if CA_VARIABLE in environment:
        tls_context(environment[CA_VARIABLE])
    _check_files(environment)


def tls_context(ca_file: str | None, source: str = CA_VARIABLE) -> ssl.SSLContext:
    """Verification by the authorities of the system, or by those of a file or folder.

    Args:
        ca_file: None: those of the system.
        source: what names the file, for the message.

    Raises:
        ConfigError: the file is missing or has no certificates.
    """
    try:
        if ca_file is not None and os.path.isdir(ca_file):
            return ssl.create_default_context(capath=ca_file)
        return ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError as error:
        reason = "has no certificate that can be read"
        raise _file_error(source, str(ca_file), reason) from error
    except OSError as error:
        raise _file_error(source, str(ca_file), _reason(error)) from error


def given_by(environment: Mapping[str, str], names: tuple[str, ...]) -> str:
    """The variable that gives a setting; all its names when none does."""
    return next((name for name in names if environment.get(name)), " or ".join(names))


def _tidy(environment: MutableMapping[str, str], name: str) -> None:
    value = environment[name]
    tidied = value.strip()
    if tidied != value:
        log.warning(
            "%s: blank characters around its value were removed", name, extra={"variable": name}
        )
    if not tidied:
        del environment[name]
        return
    if tidied != value:
        environment[name] = tidied
    one_word = name in _ONE_WORD
    if _CONTROL.search(tidied) or (one_word and (" " in tidied or not tidied.isascii())):
        raise ConfigError(
            "the value has a line break, a blank or another character that it cannot have",
            where=name,
            fix="write the value again; a Secret is made with `printf %s`, without line breaks "
            "inside (`base64 -w0`)",
        )


def _check_files(environment: Mapping[str, str]) -> None:
    """Files that the client libraries would report as a network failure or a bug."""
    for name in _PROFILE_FILES:
        path = os.path.expanduser(environment.get(name, ""))
        if os.path.isfile(path):
            _read(name, path)
    if _KEYS[0] in environment:
        return  # keys take precedence over every file
    for name in _SOURCE_FILES:
        if name not in environment:
            continue
        text = _read(name, os.path.expanduser(environment[name]))
        if "TOKEN" not in name:
            continue
        if not text.strip():
            raise _file_error(name, environment[name], "is empty")
        if "CONTAINER" in name and _CONTROL.search(text):
            raise _file_error(name, environment[name], "has a line break, which no header takes")


def _read(name: str, path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise _file_error(name, path, "is not text") from error
    except OSError as error:
        raise _file_error(name, path, _reason(error)) from error


def _reason(error: OSError) -> str:
    return f"cannot be read ({(error.strerror or type(error).__name__).lower()})"


def _file_error(name: str, path: str, reason: str) -> ConfigError:
    return ConfigError(
        f"{name} names a file that {reason}",
        where=path,
        fix=f"correct {name}, or mount the file there",
    )
