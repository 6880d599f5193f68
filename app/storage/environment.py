"""The variables that the S3 clients read: made usable, or refused by name before a request.

A newline at the end of a key (a Secret made by `echo key | base64`) or a file that is not there
fails inside the client libraries like a network that is down, and would be retried.
"""

from __future__ import annotations

import logging
import os
import re
import ssl
from collections.abc import Mapping, MutableMapping

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
