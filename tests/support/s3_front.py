"""An HTTP front before an S3 server that plays what AWS does and small servers do not.

Requests pass unchanged, so signatures stay valid: give the client the front's address as its
endpoint. A situation sees each request before the server does, and each answer before the client.
As on S3, a refusal of HEAD has a status and nothing else.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass(frozen=True)
class Request:
    """One request: `key` is empty where it is about the bucket."""

    method: str
    key: str
    query: dict[str, str]
    headers: dict[str, str]  # names in lower case


@dataclass(frozen=True)
class Answer:
    """What the client receives."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


def refusal(status: int, code: str, more: str = "", **headers: str) -> Answer:
    """An error of S3."""
    text = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>no</Message>{more}</Error>'
    return Answer(status, {"Content-Type": "application/xml", **headers}, text.encode())


class Situation:
    """Everything passes; the others change one of the two."""

    def before(self, request: Request) -> Answer | None:
        """An answer in place of the server's; None: ask the server."""
        return None

    def after(self, request: Request, answer: Answer) -> Answer:
        """The answer that the client gets for the server's."""
        return answer


class PrefixOnly(Situation):
    """A policy for the objects below a prefix, with ListBucket where `s3:prefix` is below it."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def before(self, request: Request) -> Answer | None:
        place = request.key or request.query.get("prefix", "")
        listing = request.method == "GET" and "uploads" not in request.query
        if (request.key or listing) and place.startswith(self.prefix):
            return None
        return refusal(403, "AccessDenied")

    def after(self, request: Request, answer: Answer) -> Answer:
        # HEAD and GET of a key carry no s3:prefix, so ListBucket is not allowed for them, and
        # without it S3 does not say that a key does not exist.
        missing = request.key and request.method in ("GET", "HEAD") and answer.status == 404
        return refusal(403, "AccessDenied") if missing else answer


class ExpiredToken(Situation):
    """Requests with the session token `token` are refused: it has expired."""

    def __init__(self, token: str, status: int = 400) -> None:
        self.token, self.status = token, status

    def before(self, request: Request) -> Answer | None:
        if request.headers.get("x-amz-security-token") != self.token:
            return None
        return refusal(400 if request.method == "HEAD" else self.status, "ExpiredToken")


class ClockSkew(Situation):
    """A server whose clock is `seconds` ahead of the client's."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def before(self, request: Request) -> Answer | None:
        date = formatdate(time.time() + self.seconds, usegmt=True)
        return refusal(403, "RequestTimeTooSkewed", Date=date)


class Archived(Situation):
    """One object is in an archive: HEAD and listings show it, GET does not give it."""

    def __init__(self, key: str) -> None:
        self.key = key

    def before(self, request: Request) -> Answer | None:
        if request.method != "GET" or request.key != self.key:
            return None
        return refusal(403, "InvalidObjectState", "<StorageClass>GLACIER</StorageClass>")


class RequesterPays(Situation):
    """A bucket that answers those only who say that they pay, in a header that they signed."""

    def before(self, request: Request) -> Answer | None:
        signed = "x-amz-request-payer" in request.headers.get("authorization", "")
        if signed and request.headers.get("x-amz-request-payer") == "requester":
            return None
        return refusal(403, "AccessDenied")


class S3Front(ThreadingHTTPServer):
    """The front of 127.0.0.1:`upstream_port`; `log` has the requests as `METHOD path?query`."""

    daemon_threads = True

    def __init__(self, upstream_port: int, situation: Situation) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream_port = upstream_port
        self.situation = situation
        self.log: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: S3Front
    protocol_version = "HTTP/1.1"

    def do_any(self) -> None:
        self.server.log.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urlsplit(self.path)
        request = Request(
            self.command,
            unquote(url.path).lstrip("/").partition("/")[2],
            {name: found[0] for name, found in parse_qs(url.query, True).items()},
            {name.lower(): value for name, value in self.headers.items()},
        )
        situation = self.server.situation
        answer = situation.before(request)
        if answer is None:
            answer = situation.after(request, self.ask(body))
        self.give(answer)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_any

    def ask(self, body: bytes) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.upstream_port, timeout=30)
        try:
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                if name.lower() not in ("expect", "connection"):
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return Answer(answer.status, dict(answer.getheaders()), answer.read())
        finally:
            connection.close()

    def give(self, answer: Answer) -> None:
        headers = {name.title(): value for name, value in answer.headers.items()}
        for name in ("Connection", "Transfer-Encoding", "Server"):
            headers.pop(name, None)
        announced = headers.pop("Content-Length", "0")
        is_head = self.command == "HEAD"
        if answer.status != 204:
            length = str(len(answer.body))
            if is_head:
                length = announced if answer.status < 400 else "0"
            headers["Content-Length"] = length
        self.send_response_only(answer.status)
        for name, value in {"Date": formatdate(usegmt=True), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if not is_head and answer.status != 204:
            self.wfile.write(answer.body)

    def log_message(self, *args: object) -> None:
        """Nothing on the terminal of the tests."""


@contextmanager
def s3_front(upstream_port: int, situation: Situation) -> Iterator[S3Front]:
    front = S3Front(upstream_port, situation)
    thread = threading.Thread(target=front.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield front
    finally:
        front.shutdown()
        thread.join()
        front.server_close()
