"""A server that answers each connection with given bytes, at a given pace: for hostile answers."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

Answer = Callable[[str], Iterator[bytes]]  # by the request line; pauses are its own


@dataclass
class ScriptedServer:
    """Where it listens, and the request lines that came."""

    port: int
    log: list[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def scripted_server(answer: Answer, tls: ssl.SSLContext | None = None) -> Iterator[ScriptedServer]:
    """Listens until the end of the block; each connection gets one answer and is closed."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = ScriptedServer(listener.getsockname()[1], [])
    ended = threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(10)
            peer = connection if tls is None else tls.wrap_socket(connection, server_side=True)
            head = b""
            while b"\r\n\r\n" not in head and (block := peer.recv(65536)):
                head += block
            line = head.split(b"\r\n")[0].decode("latin-1")
            server.log.append(line)
            for block in answer(line):
                if ended.is_set():
                    return
                peer.sendall(block)
            peer.close()

    def accept() -> None:
        while not ended.is_set():
            with suppress(OSError):
                connection, _ = listener.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        ended.set()
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", server.port)).close()  # ends accept()
        thread.join(5)
        listener.close()


def plainly(*blocks: bytes) -> Answer:
    """The same bytes for every request."""
    return lambda line: iter(blocks)


def dripping(head: bytes, every_s: float, body: bytes = b"x" * 1000) -> Answer:
    """`head` at once, then one byte of `body` at a time."""

    def answer(line: str) -> Iterator[bytes]:
        yield head
        for index in range(len(body)):
            time.sleep(every_s)
            yield body[index : index + 1]

    return answer
