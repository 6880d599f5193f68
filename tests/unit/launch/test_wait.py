"""Waiting for the master, against real sockets."""

from __future__ import annotations

import socket

import pytest

from app.errors import PreemptedError, RetryableError
from app.launch.wait import connect_once, resolve_once, wait_for_master
from tests.support.ports import reserved_port


def never(_: float) -> bool:
    return False


def test_a_listening_port_ends_the_wait_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = ("127.0.0.1", server.getsockname()[1])

        assert wait_for_master(address, 5.0, never) < 2.0


def test_the_name_is_resolved_again_at_each_try() -> None:
    tries = []

    def attempt(host: str, port: int) -> None:
        tries.append((host, port))
        if len(tries) < 4:
            raise socket.gaierror(-2, "Name or service not known")

    wait_for_master(("cogvx-master-0", 23456), 60.0, never, attempt)

    assert tries == [("cogvx-master-0", 23456)] * 4


def test_the_pauses_grow_and_are_bounded() -> None:
    pauses: list[float] = []

    def attempt(host: str, port: int) -> None:
        if len(pauses) < 20:
            raise ConnectionRefusedError

    def pause(seconds: float) -> bool:
        pauses.append(seconds)
        return False

    wait_for_master(("a", 1), 1000.0, pause, attempt)

    assert pauses == sorted(pauses)
    assert pauses[0] < 1.0
    assert pauses[-1] == 5.0


def test_the_deadline_is_retryable_and_names_the_address() -> None:
    with pytest.raises(RetryableError) as caught:
        wait_for_master(("127.0.0.1", reserved_port()), 0.0, never)

    assert caught.value.exit_code == 138
    assert "127.0.0.1:" in caught.value.where


def test_a_signal_while_waiting_is_a_preemption() -> None:
    with pytest.raises(PreemptedError) as caught:
        wait_for_master(("127.0.0.1", reserved_port()), 60.0, lambda _: True)

    assert caught.value.exit_code == 143


def test_an_unknown_name_cannot_be_resolved() -> None:
    with pytest.raises(OSError):
        resolve_once("no-such-master.invalid", 1)
    resolve_once("127.0.0.1", 1)


def test_a_closed_port_refuses() -> None:
    with pytest.raises(OSError):
        connect_once("127.0.0.1", reserved_port())
