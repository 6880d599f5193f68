"""Python with the libraries of a trainer imported, which forks itself for each warm_client.py.

Importing torch, deepspeed and transformers takes a process seven seconds of CPU, and the suite
starts a hundred of them. Nothing of the product is imported here: a fork reads it as any process
does. One thread, so that a fork is safe. Ends when the process is gone that named the socket.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import io
import json
import os
import random
import runpy
import selectors
import signal
import socket
import sys
import tempfile
import threading
import traceback
from contextlib import suppress
from typing import Any, BinaryIO

OWNER = "WARM_PYTHON_OWNER"  # variable: process id
LIBRARIES = (
    *("torch", "torch.distributed", "deepspeed", "transformers", "s3fs", "omegaconf", "einops"),
    *("safetensors.torch", "transformers.models.t5.modeling_t5", "sentencepiece", "PIL.Image"),
)
ALIVE_S = 1.0  # between two looks at the owner


class Request:
    """What a client asks for; its three streams are open here."""

    def __init__(self, connection: socket.socket) -> None:
        head, self.streams, _, _ = socket.recv_fds(connection, 8, 3)
        size, body = int.from_bytes(head, "little"), bytearray()
        while len(body) < size:
            body += connection.recv(1 << 20)
        content: dict[str, Any] = json.loads(body)
        self.words: list[str] = content["words"]
        self.folder: str = content["folder"]
        self.variables: dict[str, str] = content["variables"]


def serve(address: str, owner: int) -> Request:
    """Answer clients until the owner is gone; returns in each fork, with its request."""
    with suppress(FileNotFoundError):
        os.unlink(address)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    ended, wakeup = socket.socketpair()
    wakeup.setblocking(False)
    ended.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
    poll = selectors.DefaultSelector()
    poll.register(listener, selectors.EVENT_READ)
    poll.register(ended, selectors.EVENT_READ)
    clients: dict[int, socket.socket] = {}  # by the process that runs for it
    while os.path.exists(f"/proc/{owner}"):
        for key, _ in poll.select(ALIVE_S):
            if key.fileobj is listener:
                connection, _ = listener.accept()
                request = Request(connection)
                process = os.fork()
                if process == 0:
                    for other in (*clients.values(), connection, listener, ended, wakeup):
                        other.close()
                    poll.close()
                    return request
                for stream in request.streams:
                    os.close(stream)
                clients[process] = connection
                poll.register(connection, selectors.EVENT_READ, process)
                with suppress(OSError):
                    connection.sendall(f"{process}\n".encode())
            elif key.fileobj is ended:
                ended.recv(1 << 12)
                report_ended(clients, poll)
            else:  # a client never says more: it is gone
                poll.unregister(key.fileobj)
                with suppress(ProcessLookupError):
                    os.killpg(key.data, signal.SIGKILL)
    for process in clients:
        with suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)
    for name in (address, f"{address}.lock", f"{address}.log"):
        os.unlink(name)
    os._exit(0)


def report_ended(clients: dict[int, socket.socket], poll: selectors.BaseSelector) -> None:
    """Tell the clients of ended processes the exit codes, negative for a signal."""
    with suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            process, status = found
            connection = clients.pop(process)
            with suppress(KeyError):
                poll.unregister(connection)
            with suppress(OSError):
                connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
            connection.close()


def become(request: Request) -> None:
    """Turn this fork into the process that the client stands for."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, stream in enumerate(request.streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request.folder)
    os.environ.clear()
    os.environ.update(request.variables)
    tempfile.tempdir = None
    random.seed()
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 (open as long as the process)
    sys.stdout = stream_to(1, unbuffered=unbuffered)
    sys.stderr = stream_to(2, unbuffered=True)


def stream_to(number: int, *, unbuffered: bool) -> io.TextIOWrapper:
    raw: BinaryIO = open(number, "wb", closefd=False)  # noqa: SIM115 (open as long as the process)
    errors = "backslashreplace" if number == 2 else "strict"
    return io.TextIOWrapper(
        raw, "utf-8", errors, line_buffering=os.isatty(number), write_through=unbuffered
    )


def run(words: list[str], path: list[str]) -> None:
    """What the interpreter does with its command line: `-m MODULE`, `-c CODE` or a script."""
    variable = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    first, *rest = words
    if first in ("-m", "-c"):
        name, *rest = rest
        sys.path[:] = [os.getcwd() if first == "-m" else "", *variable, *path]
        sys.argv = [first, *rest]
        if first == "-m":
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        else:
            exec(compile(name, "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.path[:] = [os.path.dirname(os.path.abspath(first)), *variable, *path]
        sys.argv = words
        runpy.run_path(first, run_name="__main__")


def ended_like_the_interpreter(words: list[str], path: list[str]) -> int:
    """Run, and the exit code that Python gives to how it ended."""
    try:
        run(words, path)
    except SystemExit as ending:
        if ending.code is None or isinstance(ending.code, int):
            return ending.code or 0
        print(ending.code, file=sys.stderr)
        return 1
    except BaseException:  # noqa: BLE001 (as the interpreter does)
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    given = [entry for entry in os.environ.pop("PYTHONPATH", "").split(os.pathsep) if entry]
    path_of_all = [entry for entry in sys.path[1:] if entry not in given]
    # What the trainer itself sets before these imports (app.training.engine.prepare_process).
    os.environ |= {"DS_ACCELERATOR": "cpu", "TORCHDYNAMO_DISABLE": "1"}
    for library in LIBRARIES:
        importlib.import_module(library)
    assert len(os.listdir("/proc/self/task")) == 1, "a fork would lose the other threads"
    gc.collect()
    gc.freeze()  # a fork's collector does not copy the pages of the libraries
    own = serve(sys.argv[1], int(os.environ[OWNER]))
    become(own)
    status = ended_like_the_interpreter(own.words, path_of_all)
    threading._shutdown()  # type: ignore[attr-defined] # waits for threads, as at any end
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # without clearing every module, which copies the pages too
