"""`python -I -S warm_client.py WORDS` is `python WORDS`, but begun with the libraries imported.

The process that runs WORDS is a fork of warm_server.py, which is started when none answers. This
one stands for it: its streams, folder and variables are handed over, signals are passed on, the
exit status is the same, and when this process is killed the other one is killed too. Imports
nothing but the standard library.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time

ADDRESS = "WARM_PYTHON"  # variable: the server's socket; its lock and log are beside it
START_S = 120.0
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def connected(address: str) -> socket.socket:
    """A connection to the server, which is started by the first who needs it."""
    client = socket.socket(socket.AF_UNIX)
    try:
        client.connect(address)
        return client
    except OSError:
        client.close()
    with open(f"{address}.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        server: subprocess.Popen[bytes] | None = None
        deadline = time.monotonic() + START_S
        while True:
            client = socket.socket(socket.AF_UNIX)
            try:
                client.connect(address)
                return client
            except OSError:
                client.close()
            server = server or started(address)
            if server.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"{address}.log tells why there is no server")
            time.sleep(0.05)


def started(address: str) -> subprocess.Popen[bytes]:
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "warm_server.py")
    with open(f"{address}.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, script, address],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
        )


def main(words: list[str]) -> int:
    variables = dict(os.environ)
    with connected(variables[ADDRESS]) as server:
        request = {"words": words, "folder": os.getcwd(), "variables": variables}
        body = json.dumps(request).encode()
        socket.send_fds(server, [len(body).to_bytes(8, "little")], [0, 1, 2])
        server.sendall(body)
        answers = server.makefile("r")
        process = int(answers.readline())
        for number in PASSED_ON:
            signal.signal(number, lambda number, _: os.kill(process, number))
        answer = answers.readline()
    if not answer:
        return 1
    status = int(answer)
    if status < 0:
        signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
        os.kill(os.getpid(), -status)
    return status


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))
