"""Stands in for the trainer below PID 1: does what its arguments say."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ORPHAN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(120)"


def main(words: list[str]) -> int:
    action, rest = words[1], words[2:]
    if action == "exit":
        return int(rest[0])
    if action == "die":
        os.kill(os.getpid(), int(rest[0]))
    if action == "status":
        content = {"exit_code": int(rest[0]), "what": "w", "where": "x", "fix": "y"}
        Path(os.environ["COGVX_STATUS_FILE"]).write_text(json.dumps(content))
        return int(rest[1])
    if action == "environment":
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        # One write: two ranks share the pipe, and their lines must not mix.
        os.write(1, (json.dumps({name: os.environ.get(name) for name in names}) + "\n").encode())
    if action == "orphan":
        child = subprocess.Popen([sys.executable, "-c", ORPHAN], start_new_session=True)
        time.sleep(0.5)  # it must ignore SIGTERM before it is asked
        Path(rest[0]).write_text(str(child.pid))
    if action == "wait":
        code = int(rest[1])
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(code))
        Path(rest[0]).write_text("ready")
        time.sleep(120)
    if action == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        Path(rest[0]).write_text("ready")
        time.sleep(120)
    if action == "rank-dies" and os.environ["RANK"] == rest[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "rank-dies":
        time.sleep(120)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
