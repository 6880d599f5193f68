"""An HTTP/1.1 proxy that hurts requests, to put between an S3 client and an S3 server.

Bytes and the Host header pass unchanged, so signatures stay valid: give the client the proxy's
address as its endpoint. Which request is hurt is a pure function of (seed, rule, key, index of
the request within its key), never of time or thread order; a key is method + path + range + part
number, or everything in order of arrival with `"key": "all"`. A rule is a dict, the first that
fires wins:

    kind     one of KINDS; its parameters: after_bytes, delay_s, bps, status, code, extra
    match    regular expression sought in "METHOD /path?query", with " [range]" for a ranged GET
    rate     share of matching requests that are hurt (default 1);  every: each n-th instead
    first    only the first n of each key;  limit: at most n in all;  skip: let the first n pass

A client that continues a cut download asks for a new range, which is a new key: `first` cuts
again, `limit` does not.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import socket
import struct
import threading
import time
from collections import Counter
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

Rule = dict[str, Any]

KINDS = {
    "status": "answer `status` (503) with S3 error `code` (SlowDown), do not forward",
    "reset_before": "RST instead of forwarding",
    "reset_headers": "forward, drop the answer, RST: the work is done and the client cannot know",
    "reset_body": "RST after `after_bytes` of the answer's body",
    "truncate": "FIN after `after_bytes` of the answer's body",
    "stall": "pause for `delay_s` after `after_bytes` of the answer's body",
    "drip": "send the answer's body at `bps` bytes per second",
    "wrong_length": "announce Content-Length + `extra`, send the body, FIN",
    "short_ok": "announce and send only the first `after_bytes`",
    "corrupt": "flip one bit of the answer's body at `after_bytes`",
    "cut_upload": "pass `after_bytes` of the request's body on, then RST both sides",
    "latency": "wait `delay_s` before forwarding",
}
DEFAULT_AT = 1 << 16

# The mix that data and chaos tests run under: about 10% of reads, 9% of writes.
READ_KINDS = ("status", "reset_before", "reset_body", "stall", "truncate", "short_ok")
STANDARD_MIX: list[Rule] = [
    *({"kind": kind, "rate": 0.017, "match": "^GET", "delay_s": 5.0} for kind in READ_KINDS),
    *(
        {"kind": kind, "rate": 0.03, "match": "^(PUT|POST)"}
        for kind in ("status", "cut_upload", "reset_headers")
    ),
]

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter


class FaultProxy:
    """Proxy on 127.0.0.1:`port` in front of 127.0.0.1:`upstream_port`; a context manager."""

    def __init__(self, upstream_port: int, rules: list[Rule] | None = None, seed: int = 0) -> None:
        self.upstream_port = upstream_port
        self.port = 0
        self._seed = seed
        self._lock = threading.Lock()
        self._ready = threading.Event()
        self._outage_until = 0.0
        self._thread: threading.Thread | None = None
        self.set_rules(rules or [])

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def set_rules(self, rules: list[Rule]) -> None:
        """Replace all rules; counters and log begin again."""
        unknown = [rule.get("kind") for rule in rules if rule.get("kind") not in KINDS]
        assert not unknown, f"unknown fault kinds {unknown}"
        with self._lock:
            self._rules = [dict(rule, seen=Counter(), done=0) for rule in rules]
            self._stats: Counter[str] = Counter()
            self._log: list[tuple[str, str | None]] = []

    def outage(self, seconds: float) -> None:
        """Answer every request by RST for a while."""
        self._outage_until = time.monotonic() + seconds

    def stats(self) -> dict[str, int]:
        """Requests by what was done to them."""
        return dict(self._stats)

    def log(self) -> list[tuple[str, str | None]]:
        """(request line, kind or None) in order of arrival."""
        return list(self._log)

    def __enter__(self) -> FaultProxy:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(10), "the fault proxy did not start"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        assert self._thread is not None
        self._thread.join(10)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, limit=1 << 20)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    def _choose(self, method: str, target: str, byte_range: str | None) -> Rule | None:
        url = urlsplit(target)
        line = f"{method} {target}" + (" [range]" if byte_range else "")
        part = parse_qs(url.query).get("partNumber", [""])[0]
        key = f"{method} {url.path} {byte_range or ''} {part}"
        with self._lock:
            fired = None
            for number, rule in enumerate(self._rules):
                if re.search(rule.get("match", ""), line) and self._fires(number, rule, key):
                    rule["done"] += 1
                    fired = rule
                    break
            self._stats["requests"] += 1
            self._stats[fired["kind"] if fired else "passed"] += 1
            self._log.append((line, fired["kind"] if fired else None))
            return fired

    def _fires(self, number: int, rule: Rule, key: str) -> bool:
        group = "" if rule.get("key") == "all" else key
        index = rule["seen"][group]
        rule["seen"][group] += 1
        if index >= rule.get("first", 1 << 62) or rule["done"] >= rule.get("limit", 1 << 62):
            return False
        if index < rule.get("skip", 0):
            return False
        if every := rule.get("every"):
            return bool((index + 1) % every == 0)
        text = f"{self._seed}/{number}/{group}/{index}".encode()
        draw = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") / 2**64
        return bool(draw < rule.get("rate", 1.0))

    async def _connection(self, down_in: Reader, down_out: Writer) -> None:
        upstream: tuple[Reader, Writer] | None = None
        try:
            while True:
                raw, line, headers = await _head(down_in)
                method, target, _ = line.split(" ", 2)
                if time.monotonic() < self._outage_until:
                    self._stats["outage"] += 1
                    return _reset(down_out)
                rule = self._choose(method, target, headers.get("range"))
                kind = rule["kind"] if rule else None
                if kind == "latency":
                    await asyncio.sleep(rule.get("delay_s", 1.0))
                if kind == "reset_before":
                    return _reset(down_out)
                if kind == "status":
                    return await _answer_error(method, headers, rule, (down_in, down_out))
                if upstream is None:
                    upstream = await asyncio.open_connection(
                        "127.0.0.1", self.upstream_port, limit=1 << 20
                    )
                exchange = _Exchange(method, headers, rule or {}, (down_in, down_out), upstream)
                if not await exchange.run(raw):
                    return None
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            return None
        finally:
            down_out.close()
            if upstream is not None:
                upstream[1].close()


class _Exchange:
    """One forwarded request and its answer."""

    def __init__(
        self,
        method: str,
        headers: dict[str, str],
        rule: Rule,
        down: tuple[Reader, Writer],
        up: tuple[Reader, Writer],
    ) -> None:
        self.method = method
        self.headers = headers
        self.rule = rule
        self.kind = rule.get("kind")
        self.at = rule.get("after_bytes", DEFAULT_AT)
        self.down_in, self.down_out = down
        self.up_in, self.up_out = up

    async def run(self, raw: bytes) -> bool:
        """Whether the connection can be used again."""
        self.up_out.write(raw)
        if self.headers.get("expect", "").lower() == "100-continue":
            interim, status_line, answer = await _head(self.up_in)
            self.down_out.write(interim)
            if " 100" not in status_line:  # a final answer; the client will not send its body
                await _body(self.up_in, answer, self.down_out)
                return False
        if self.kind == "cut_upload":
            return await self._cut()
        await _body(self.down_in, self.headers, self.up_out)
        await self.up_out.drain()
        return await self._answer()

    async def _cut(self) -> bool:
        length = int(self.headers.get("content-length", 0))
        await _pump(self.down_in, min(self.at, length), self.up_out)
        await asyncio.sleep(0.02)  # let the server see what was sent
        _reset(self.up_out)
        _reset(self.down_out)
        return False

    async def _answer(self) -> bool:
        raw, line, headers = await _head(self.up_in)
        while line.split(" ")[1] == "100":  # moto says "continue" twice
            raw, line, headers = await _head(self.up_in)
        if self.kind == "reset_headers":
            _reset(self.down_out)
            return False
        has_body = self.method != "HEAD" and line.split(" ")[1] not in ("204", "304")
        length = int(headers.get("content-length", 0))
        if self.kind in ("wrong_length", "short_ok") and has_body:
            return await self._lie(raw, length)
        self.down_out.write(raw)
        if has_body and self.at < length:
            left = await self._hurt_body(length)
            if left is None:
                return False
            headers = {"content-length": str(left)} if left != length else headers
        if has_body:
            bps = self.rule.get("bps", DEFAULT_AT) if self.kind == "drip" else None
            await _body(self.up_in, headers, self.down_out, bps)
        await self.down_out.drain()
        return True

    async def _lie(self, raw: bytes, length: int) -> bool:
        short = self.kind == "short_ok"
        shown = max(0, min(self.at, length) if short else length + self.rule.get("extra", 1))
        head = re.sub(rb"(?i)(content-length: *)\d+", rb"\g<1>" + str(shown).encode(), raw)
        self.down_out.write(head)
        await _pump(self.up_in, shown if short else length, self.down_out)
        return False

    async def _hurt_body(self, length: int) -> int | None:
        """Bytes of the body still to send, or None when the connection has ended."""
        if self.kind not in ("reset_body", "truncate", "stall", "corrupt"):
            return length
        await _pump(self.up_in, self.at, self.down_out)
        if self.kind == "corrupt":
            byte = await self.up_in.readexactly(1)
            self.down_out.write(bytes([byte[0] ^ 1]))
            return length - self.at - 1
        if self.kind == "stall":
            await asyncio.sleep(self.rule.get("delay_s", 30.0))
            return length - self.at
        await asyncio.sleep(0.05)  # let the bytes out before the end
        if self.kind == "reset_body":
            _reset(self.down_out)
        return None


async def _answer_error(
    method: str, headers: dict[str, str], rule: Rule | None, down: tuple[Reader, Writer]
) -> None:
    assert rule is not None
    if headers.get("expect", "").lower() != "100-continue":
        await _body(down[0], headers, None)
    code = rule.get("code", "SlowDown")
    text = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>injected</Message></Error>'
    head = (
        f"HTTP/1.1 {rule.get('status', 503)} Injected\r\nContent-Type: application/xml\r\n"
        f"Content-Length: {len(text)}\r\nConnection: close\r\n\r\n"
    )
    down[1].write((head + ("" if method == "HEAD" else text)).encode())
    await down[1].drain()


def _reset(writer: Writer) -> None:
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


async def _head(reader: Reader) -> tuple[bytes, str, dict[str, str]]:
    raw = await reader.readuntil(b"\r\n\r\n")
    lines = raw.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines[1:] if ":" in line)
    return raw, lines[0], {name.strip().lower(): value.strip() for name, _, value in pairs}


async def _pump(
    reader: Reader, count: int, writer: Writer | None, bps: float | None = None
) -> None:
    while count > 0:
        block = await reader.read(min(count, 1 << 16 if bps is None else max(1, int(bps / 10))))
        if not block:
            raise ConnectionError("the peer ended its body early")
        count -= len(block)
        if writer is not None:
            writer.write(block)
            await writer.drain()
        if bps is not None:
            await asyncio.sleep(len(block) / bps)


async def _body(
    reader: Reader, headers: dict[str, str], writer: Writer | None, bps: float | None = None
) -> None:
    if headers.get("transfer-encoding", "").lower() != "chunked":
        await _pump(reader, int(headers.get("content-length", 0)), writer, bps)
        return
    line = b""
    while size := int((line := await reader.readline()).split(b";")[0], 16):
        if writer is not None:
            writer.write(line)
        await _pump(reader, size + 2, writer, bps)
    while True:  # the zero chunk and the trailers
        if writer is not None:
            writer.write(line)
        if line in (b"\r\n", b""):
            return
        line = await reader.readline()
