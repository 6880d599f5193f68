"""A folder over http, with ranges, index pages and faults that can be switched on."""

from __future__ import annotations

import html
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote


class FileServer(ThreadingHTTPServer):
    """Serves `root`; remembers requests as `METHOD path [range]`."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.log: list[str] = []
        self.faults: list[str] = []  # taken one by one by GETs of ranges: 503, cut, reset, wrong
        self.has_ranges, self.has_pages = True, True
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def counts(self) -> Counter[str]:
        return Counter(line.split()[0] for line in self.log)


class _Handler(BaseHTTPRequestHandler):
    server: FileServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def log_message(self, *args: object) -> None:
        """Nothing on the terminal of the tests."""

    def answer(self, *, body: bool) -> object:
        span = self.headers.get("Range") if self.server.has_ranges else None
        with self.server.lock:
            self.server.log.append(f"{self.command} {self.path} {span or ''}".strip())
            fault = self.server.faults.pop(0) if span and self.server.faults else ""
        name = unquote(self.path).lstrip("/")
        path = self.server.root / name
        if path.is_dir() and self.server.has_pages:
            return self.send(200, page(path), {"Content-Type": "text/html; charset=utf-8"}, body)
        if not path.is_file():
            return self.send(404, b"no such file", {}, body)
        if fault == "503":
            return self.send(503, b"slow down", {}, body)
        if fault == "reset":
            return self.connection.close()
        data = path.read_bytes()
        headers = {
            "Last-Modified": formatdate(path.stat().st_mtime, usegmt=True),
            "Content-Type": "application/octet-stream",
        }
        status, total = 200, len(data)
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", span or "")
        if match:
            start, stop = int(match[1]), min(int(match[2]) + 1, total)
            if start >= total:
                return self.send(416, b"", {}, body)
            data, status = data[start:stop], 206
            shown = start + 1 if fault == "wrong" else start
            headers["Content-Range"] = f"bytes {shown}-{stop - 1}/{total}"
        return self.send(status, data, headers, body, cut=fault == "cut")

    def send(
        self, status: int, data: bytes, headers: dict[str, str], body: bool, cut: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.close_connection = True


def page(folder: Path) -> bytes:
    """An index page as common servers make them."""
    names = sorted(child.name + "/" * child.is_dir() for child in folder.iterdir())
    links = [f'<a href="{quote(name)}">{html.escape(name)}</a>' for name in names]
    extra = '<a href="../">up</a> <a href="?C=M;O=A">by date</a> <a href="https://x.test/">x</a>'
    return f"<html><body>{extra}<pre>{'<br>'.join(links)}</pre></body></html>".encode()


@contextmanager
def file_server(root: Path) -> Iterator[FileServer]:
    server = FileServer(root)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
