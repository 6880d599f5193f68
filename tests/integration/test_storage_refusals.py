"""What a user reads, and which code ends the command, when storage refuses.

A front plays what AWS does (tests/support/s3_front.py), before a real server that checks
signatures.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.checkpoint.retention import sweep
from app.cli.main import main
from app.errors import AccessDeniedError, CogvxError, InputMissingError, RetryableError
from app.storage.fetch import fetch
from app.storage.objects import ObjectMissingError, Storage, read_if_present, stat_if_present
from app.storage.opening import open_storage
from app.storage.s3 import S3Storage
from app.storage.settings import StorageSettings
from tests.support.certificates import self_signed
from tests.support.s3_front import (
    Answer,
    Archived,
    ClockSkew,
    ExpiredToken,
    PrefixOnly,
    Request,
    RequesterPays,
    S3Front,
    Situation,
    refusal,
    s3_front,
)
from tests.support.s3_servers import RunningServer, set_environment
from tests.support.scripted_server import dripping, plainly, scripted_server

SOON_S = 15.0  # in place of the 300 s of retries that these took


@pytest.fixture
def behind(rclone_server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Behind]:
    with _fronts(rclone_server, monkeypatch) as made:
        yield made


class Behind:
    """Makes fronts, and points this process's clients at them."""

    def __init__(self, server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server, self.monkeypatch = server, monkeypatch
        self.closing: list[object] = []

    def put(self, key: str, data: bytes = b"content") -> None:
        """Write an object past every front."""
        set_environment(self.monkeypatch, self.server.environment)
        open_storage("s3://bucket").write_small(key, data)

    def enter(self, situation: Situation, **variables: str) -> S3Front:
        context = s3_front(self.server.port, situation)
        front = context.__enter__()
        self.closing.append(context)
        set_environment(self.monkeypatch, {**self.server.behind(front.endpoint), **variables})
        return front


@contextmanager
def _fronts(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Behind]:
    made = Behind(server, monkeypatch)
    yield made
    for context in made.closing:
        context.__exit__(None, None, None)  # type: ignore[attr-defined]


def listed(url: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Code and output of `cogvx storage ls`, which must end soon."""
    started = time.monotonic()
    code = main(["storage", "ls", url])
    assert time.monotonic() - started < SOON_S
    shown = capsys.readouterr()
    return code, shown.out + shown.err


# --- a policy for one prefix


def test_a_policy_for_one_prefix_is_enough(
    behind: Behind, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    behind.put("team-a/run/x.txt")
    front = behind.enter(PrefixOnly("team-a/"))

    code, shown = listed("s3://bucket/team-a/run", capsys)

    assert code == 0
    assert "x.txt" in shown
    assert [line.split("?")[0] for line in front.log][:2] == ["HEAD /bucket", "GET /bucket"]


def test_with_it_what_is_missing_is_missing_and_not_denied(behind: Behind) -> None:
    behind.enter(PrefixOnly("team-b/"))
    storage = open_storage("s3://bucket/team-b/run")

    storage.check_reachable()
    assert read_if_present(storage, "complete.json") is None
    storage.write_small("a.json", b"{}")

    assert storage.read_small("a.json") == b"{}"
    assert stat_if_present(storage, "a.jso") is None
    with pytest.raises(ObjectMissingError) as missing:
        storage.read_small("b.json")
    assert missing.value.exit_code == 66


def test_with_it_a_start_goes_past_the_uploads_that_it_may_not_list(
    behind: Behind, caplog: pytest.LogCaptureFixture
) -> None:
    behind.enter(PrefixOnly("team-c/"))

    assert sweep(open_storage("s3://bucket/team-c/run"), attempt=3) == []

    assert "s3:ListBucketMultipartUploads" in caplog.text


def test_with_it_a_folder_of_weights_is_fetched_by_its_name(behind: Behind, tmp_path: Path) -> None:
    behind.put("weights/2b/config.json", b"{}")
    behind.enter(PrefixOnly("weights/2b/"))

    folder = fetch("s3://bucket/weights/2b", tmp_path)

    assert (folder / "config.json").read_bytes() == b"{}"
    with pytest.raises(AccessDeniedError):
        fetch("s3://bucket/weights/5b", tmp_path)


def test_another_prefix_is_denied(behind: Behind, capsys: pytest.CaptureFixture[str]) -> None:
    behind.enter(PrefixOnly("team-a/"))

    code, shown = listed("s3://bucket/team-z", capsys)

    assert code == 77
    assert "denied" in shown
    assert "s3:ListBucket" in shown


# --- credentials that have expired


@pytest.mark.parametrize("status", [400, 403])
def test_expired_credentials_end_with_one_code_and_say_so(
    status: int, behind: Behind, tmp_path: Path
) -> None:
    behind.put("old/x.txt")
    behind.enter(ExpiredToken("old-token", status), AWS_SESSION_TOKEN="old-token")
    storage = open_storage("s3://bucket/old")
    calls = (
        storage.check_reachable,
        storage.list,
        lambda: storage.stat("x.txt"),
        lambda: storage.read_small("x.txt"),
        lambda: storage.read_range("x.txt", 0, 3),
        lambda: storage.write_small("y.txt", b"y"),
        lambda: storage.delete(["x.txt"]),
    )

    for call in calls:
        started = time.monotonic()
        with pytest.raises(RetryableError, match="credentials have expired") as caught:
            call()
        assert time.monotonic() - started < SOON_S
        assert caught.value.exit_code == 138
        assert "AWS_SESSION_TOKEN" in caught.value.fix
        assert "old-token" not in str(caught.value)


def test_the_command_says_so_too(behind: Behind, capsys: pytest.CaptureFixture[str]) -> None:
    behind.enter(ExpiredToken("old-token"), AWS_SESSION_TOKEN="old-token")

    code, shown = listed("s3://bucket/old", capsys)

    assert code == 138
    assert "the credentials have expired (400 ExpiredToken)" in shown


@pytest.mark.parametrize("call", ["stat", "list", "read_range", "write_small"])
def test_renewed_credentials_are_read_again(call: str, behind: Behind, tmp_path: Path) -> None:
    """As an agent on the node renews a file of credentials in the middle of a run."""
    behind.put("renewed/x.txt")
    keys = behind.server.environment
    file = tmp_path / "credentials"

    def write(token: str) -> None:
        file.write_text(
            f"[default]\naws_access_key_id = {keys['AWS_ACCESS_KEY_ID']}\n"
            f"aws_secret_access_key = {keys['AWS_SECRET_ACCESS_KEY']}\n"
            f"aws_session_token = {token}\n"
        )

    front = behind.enter(Situation(), AWS_SHARED_CREDENTIALS_FILE=str(file))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        behind.monkeypatch.delenv(name)
    write("first")
    storage = open_storage("s3://bucket/renewed")
    assert storage.read_small("x.txt") == b"content"
    assert storage.read_range("x.txt", 0, 3) == b"con"

    front.situation = ExpiredToken("first")
    write("second")

    _one_call(storage, call)


def _one_call(storage: Storage, call: str) -> None:
    if call == "stat":
        assert storage.stat("x.txt").size_bytes == 7
    elif call == "list":
        assert "x.txt" in [entry.key for entry in storage.list()]
    elif call == "read_range":
        assert storage.read_range("x.txt", 1, 4) == b"ont"
    else:
        storage.write_small("y.txt", b"y")


# --- clocks, archives, who pays


@pytest.mark.parametrize(("seconds", "says"), [(3600, "behind"), (-1200, "ahead")])
def test_a_wrong_clock_is_named_with_the_difference(
    seconds: int, says: str, behind: Behind, capsys: pytest.CaptureFixture[str]
) -> None:
    behind.enter(ClockSkew(seconds))

    code, shown = listed("s3://bucket/x", capsys)

    assert code == 77
    assert "the clocks differ" in shown
    words = shown.split("this machine is ")[1].split()
    assert abs(int(words[0]) - abs(seconds)) <= 3
    assert words[2].rstrip(":") == says
    assert "NTP" in shown


@pytest.mark.parametrize("call", ["read_small", "read_range", "download"])
def test_an_archived_object_is_named(call: str, behind: Behind, tmp_path: Path) -> None:
    behind.put("cold/x-000.tar")
    behind.enter(Archived("cold/x-000.tar"))
    storage = open_storage("s3://bucket/cold")
    arguments = {"read_small": (), "read_range": (0, 3), "download": (tmp_path / "x",)}[call]

    with pytest.raises(InputMissingError, match=r"archived.*GLACIER") as caught:
        getattr(storage, call)("x-000.tar", *arguments)

    assert caught.value.exit_code == 66
    assert caught.value.where == "s3://bucket/cold/x-000.tar"
    assert "restore" in caught.value.fix


def test_the_requester_pays_where_the_setting_says_so(behind: Behind) -> None:
    behind.put("paid/x.txt")
    behind.enter(RequesterPays())
    with pytest.raises(AccessDeniedError):
        open_storage("s3://bucket/paid").check_reachable()
    behind.monkeypatch.setenv("AWS_REQUEST_PAYER", "requester")
    storage = open_storage("s3://bucket/paid")

    storage.check_reachable()

    storage.write_small("y.txt", b"yy")
    assert [entry.key for entry in storage.list()] == ["x.txt", "y.txt"]
    assert storage.read_small("x.txt") == b"content"
    assert storage.read_range("x.txt", 0, 3) == b"con"
    storage.delete(["y.txt"])


# --- the variables, through a process of its own


def run_cogvx(environment: dict[str, str]) -> tuple[int, str]:
    """Code and output of `cogvx storage ls s3://bucket/variables`, which must end soon."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("AWS_") and name != "S3_ENDPOINT_URL"
    }
    done = subprocess.run(
        [sys.executable, "-m", "app", "storage", "ls", "s3://bucket/variables"],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    "name",
    [
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_REGION",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
    ],
)
@pytest.mark.parametrize("blank", ["\n", " \r\n", "\t"])
def test_a_blank_at_the_end_of_a_variable_is_removed_and_said(
    name: str, blank: str, behind: Behind, caplog: pytest.LogCaptureFixture
) -> None:
    behind.put("variables/x.txt")
    behind.enter(Situation())
    value = os.environ[name]
    behind.monkeypatch.setenv(name, value + blank)

    assert [entry.key for entry in open_storage("s3://bucket/variables").list()] == ["x.txt"]
    open_storage("s3://bucket/variables")

    lines = [record.getMessage() for record in caplog.records if name in record.getMessage()]
    assert len(lines) == 1
    assert "blank" in lines[0]
    assert value not in lines[0]


def test_a_secret_with_a_newline_works_in_the_command(
    rclone_server: RunningServer, behind: Behind
) -> None:
    behind.put("variables/x.txt")
    environment = dict(rclone_server.environment)
    environment["AWS_SECRET_ACCESS_KEY"] += "\n"

    code, shown = run_cogvx(environment)

    assert code == 0
    assert "x.txt" in shown
    assert "AWS_SECRET_ACCESS_KEY: blank characters" in shown
    assert environment["AWS_SECRET_ACCESS_KEY"].strip() not in shown


WITHOUT_KEYS = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"AWS_PROFILE": "nobody"}, "AWS_PROFILE"),
        ({"AWS_SECRET_ACCESS_KEY": ""}, "AWS_SECRET_ACCESS_KEY"),
        ({"AWS_SECRET_ACCESS_KEY": "abcd\nefgh"}, "AWS_SECRET_ACCESS_KEY"),
        ({"AWS_SESSION_TOKEN": "abc d"}, "AWS_SESSION_TOKEN"),
        ({"AWS_REGION": "eu_west_1!"}, "AWS_REGION"),
        ({"AWS_CONFIG_FILE": "{folder}/broken"}, "AWS_CONFIG_FILE"),
        ({"AWS_SHARED_CREDENTIALS_FILE": "{folder}/broken"}, "AWS_SHARED_CREDENTIALS_FILE"),
        ({"AWS_CONFIG_FILE": "{folder}/binary"}, "AWS_CONFIG_FILE"),
        (
            {**WITHOUT_KEYS, "AWS_SHARED_CREDENTIALS_FILE": "{folder}/none"},
            "AWS_SHARED_CREDENTIALS_FILE",
        ),
        ({"AWS_CA_BUNDLE": "{folder}/none"}, "AWS_CA_BUNDLE"),
        ({"AWS_CA_BUNDLE": "{folder}/broken"}, "AWS_CA_BUNDLE"),
        ({"AWS_CONFIG_FILE": "{folder}/with_ca"}, "ca_bundle"),
        (
            {
                **WITHOUT_KEYS,
                "AWS_WEB_IDENTITY_TOKEN_FILE": "{folder}/none",
                "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/x",
            },
            "AWS_WEB_IDENTITY_TOKEN_FILE",
        ),
        ({**WITHOUT_KEYS, "AWS_WEB_IDENTITY_TOKEN_FILE": "{folder}/token"}, "AWS_ROLE_ARN"),
        (
            {
                **WITHOUT_KEYS,
                "AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1:1/x",
                "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": "{folder}/token",
            },
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
        ),
        ({**WITHOUT_KEYS, "AWS_CONFIG_FILE": "{folder}/no_source"}, "AWS_PROFILE"),
        ({"AWS_REQUEST_PAYER": "me"}, "AWS_REQUEST_PAYER"),
    ],
)
def test_a_mistake_in_the_variables_is_one_error_that_names_it(
    variables: dict[str, str],
    says: str,
    behind: Behind,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_bytes(text)
    made = {name: value.replace("{folder}", str(tmp_path)) for name, value in variables.items()}
    front = behind.enter(Situation(), **made)

    code, shown = listed("s3://bucket/variables", capsys)

    assert code == 78
    assert shown.count("error: ") == 1
    assert says in shown
    assert "retrying" not in shown
    assert front.log == []  # before the first request


FILES = {
    "broken": b"this is not a configuration\n",
    "binary": b"\xff\xfe\x00[default]",
    "with_ca": b"[default]\nca_bundle = /nonexistent/ca.pem\n",
    "token": b"secret-token\n",
    "no_source": b"[default]\nrole_arn = arn:aws:iam::123456789012:role/x\nsource_profile = gone\n",
}


def test_a_mistake_in_a_process_of_its_own_leaves_no_traceback(
    rclone_server: RunningServer,
) -> None:
    code, shown = run_cogvx({**rclone_server.environment, "AWS_PROFILE": "nobody\n"})

    assert code == 78
    assert "AWS_PROFILE" in shown
    assert "nobody" in shown


def test_https_on_an_http_port_is_said_at_the_first_request(
    behind: Behind, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint = f"https://127.0.0.1:{behind.server.port}"
    set_environment(behind.monkeypatch, behind.server.behind(endpoint))

    code, shown = listed("s3://bucket/x", capsys)

    assert code == 78
    assert "the server speaks http" in shown
    assert "AWS_ENDPOINT_URL_S3" in shown


def test_http_to_a_tls_port_is_said_at_the_first_request(
    behind: Behind, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with scripted_server(plainly(b""), self_signed(tmp_path)) as server:
        set_environment(behind.monkeypatch, behind.server.behind(server.url))

        code, shown = listed("s3://bucket/x", capsys)

    assert code == 78
    assert "the server speaks https" in shown
    assert "AWS_ENDPOINT_URL_S3" in shown


# --- names of buckets


@pytest.mark.parametrize("bucket", ["Old_Bucket.2012", "name.with.dots", "UPPER"])
def test_old_names_of_buckets_work_where_the_server_has_them(
    bucket: str, behind: Behind, tmp_path: Path
) -> None:
    assert behind.server.folder is not None
    (behind.server.folder.parent / bucket).mkdir(exist_ok=True)
    set_environment(behind.monkeypatch, behind.server.environment)
    time.sleep(1.1)  # the server keeps its list of buckets for a second
    storage = open_storage(f"s3://{bucket}/Run_1")

    storage.check_reachable()

    storage.write_small("x.txt", b"content")
    assert [entry.key for entry in storage.list()] == ["x.txt"]
    assert storage.read_small("x.txt") == b"content"
    assert storage.download("x.txt", tmp_path / "x").size_bytes == 7


def test_a_name_that_the_server_does_not_take_is_refused_before_the_start(
    behind: Behind, capsys: pytest.CaptureFixture[str]
) -> None:
    class Strict(Situation):
        def before(self, request: Request) -> Answer | None:
            return refusal(400, "InvalidBucketName")

    behind.enter(Strict())

    code, shown = listed("s3://Old_Bucket/x", capsys)

    assert code == 78
    assert "400 InvalidBucketName" in shown
    assert "bucket name" in shown


def test_an_access_point_with_an_endpoint_is_refused_before_the_start(
    behind: Behind, capsys: pytest.CaptureFixture[str]
) -> None:
    front = behind.enter(Situation())

    code, shown = listed("s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/data/x", capsys)

    assert code == 78
    assert "access point" in shown
    assert "AWS_ENDPOINT_URL_S3" in shown
    assert front.log == []


# --- drips and silence


PART = b"HTTP/1.1 206 OK\r\nContent-Range: bytes 0-999/1000\r\nContent-Length: 1000\r\n\r\n"
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
DRIPPED: dict[str, tuple[bytes, Callable[[Storage], object]]] = {
    "range": (PART, lambda storage: storage.read_range("x", 0, 1000)),
    "listing": (WHOLE, lambda storage: storage.list()),
    "headers": (b"HTTP/1.1 200 OK\r\nX-Slow: ", lambda storage: storage.stat("x")),
}


@pytest.mark.parametrize("name", list(DRIPPED))
def test_a_dripping_server_is_given_up_at_the_deadline(
    name: str, rclone_server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, call = DRIPPED[name]
    set_environment(monkeypatch, rclone_server.environment)
    with scripted_server(dripping(head, 0.05)) as server:
        settings = StorageSettings(endpoint=server.url, deadline_s=1.0, slow_window_s=0.3)
        started = time.monotonic()
        with pytest.raises(RetryableError):
            call(S3Storage("bucket", "", settings))

    assert time.monotonic() - started < 8  # 50 s without a limit


def test_a_long_silence_is_explained(
    behind: Behind, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.storage.retry.SILENT_S", 0.3)
    front = behind.enter(Situation())
    endpoint = front.endpoint
    storage = open_storage("s3://bucket/x")
    front.shutdown()
    front.server_close()
    caplog.set_level(logging.WARNING)

    with pytest.raises(CogvxError) as caught:
        storage.check_reachable(deadline_s=2.0)

    assert caught.value.exit_code == 138
    lines = [r.getMessage() for r in caplog.records if r.name == "app.storage.retry"]
    assert len(lines) == 1  # at a bounded rate
    assert lines[0].startswith("retrying for at most ")
    assert "connection" in lines[0]
    assert endpoint in lines[0]
