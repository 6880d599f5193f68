"""SIGTERM and SIGINT in the training process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from app.errors import CogvxError, InterruptedRunError, PreemptedError
from app.training.signals import StopFlag, command_line, stop_on_signals

INSISTENT = """
import os, signal, time
from app.training.signals import stop_on_signals
with stop_on_signals() as flag:
    print("ready", flush=True)
    while not flag.requested:
        time.sleep(0.01)
    print("asked", flush=True)
    time.sleep(60)
"""


IN_LOOP = INSISTENT.replace('print("ready"', 'flag.in_loop = True; print("ready"')


def test_the_first_signal_sets_the_flag_and_the_old_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)

    with stop_on_signals() as flag:
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


def test_ctrl_c_lets_the_step_end_and_says_so_and_a_second_one_ends_at_once_with_130() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", IN_LOOP], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().strip() == "ready"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline().strip() == "asked"
        process.send_signal(signal.SIGINT)

        assert process.wait(timeout=10) == 130
        assert "this step is finished and saved; once more ends at once" in process.stderr.read()


def test_ctrl_c_outside_of_the_loop_interrupts_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)  # ignored where a shell started us in the background

    with pytest.raises(KeyboardInterrupt), stop_on_signals():
        signal.raise_signal(signal.SIGINT)

    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("number", "kind", "code"),
    [(signal.SIGINT, InterruptedRunError, 130), (signal.SIGTERM, PreemptedError, 143)],
)
def test_the_end_says_where_the_run_is_and_how_it_goes_on(
    number: signal.Signals, kind: type[CogvxError], code: int
) -> None:
    error = StopFlag(True, number, command="cogvx train --base a.yaml").error(7, 60)

    assert type(error) is kind
    assert error.exit_code == code
    assert error.what == f"stopped by {number.name} after step 7, which is saved"
    assert error.fix == (
        "start the run again: it continues from this step: cogvx train --base a.yaml"
    )


def test_the_command_is_what_was_typed() -> None:
    words = ["train", "--base", "my model.yaml"]

    assert command_line(["/venv/bin/cogvx", *words]) == "cogvx train --base 'my model.yaml'"
    assert command_line(["/src/app/__main__.py", *words]).startswith("cogvx train")
    assert command_line(["mine.py", "--base", "a.yaml"]) == "python mine.py --base a.yaml"
