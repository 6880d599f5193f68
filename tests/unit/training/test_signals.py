"""SIGTERM in the training process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from app.training.signals import stop_on_sigterm

INSISTENT = """
import os, signal, time
from app.training.signals import stop_on_sigterm
with stop_on_sigterm() as flag:
    print("ready", flush=True)
    while not flag.requested:
        time.sleep(0.01)
    print("asked", flush=True)
    time.sleep(60)
"""


def test_the_first_signal_sets_the_flag_and_the_old_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)

    with stop_on_sigterm() as flag:
        assert not flag.requested
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        assert flag.requested

    assert signal.getsignal(signal.SIGTERM) is before


def test_the_second_signal_ends_the_process_at_once_with_143() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", INSISTENT], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
        process.terminate()
        assert process.stdout.readline().strip() == "asked"
        process.terminate()

        assert process.wait(timeout=10) == 143
