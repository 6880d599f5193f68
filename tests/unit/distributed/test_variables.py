"""Values of variables, with their names."""

from __future__ import annotations

import pytest

from app.distributed.variables import Sourced, Variables, default, derived
from app.errors import ConfigError

ENV = Variables({"A": " 3 ", "ZERO": "0", "EMPTY": " ", "WORD": "many", "RANGE": "2:4"})


def test_a_value_keeps_the_name_of_its_variable() -> None:
    assert ENV.integer("A") == Sourced(3, "A")
    assert ENV.text("WORD") == Sourced("many", "WORD")
    assert derived(6, Sourced(2, "N"), Sourced(3, "P"), sign="*") == Sourced(6, "N * P")
    assert default(1).source == "default"


def test_an_empty_variable_is_absent() -> None:
    assert not ENV.has("EMPTY")
    assert ENV.integer("EMPTY") is None
    assert ENV.count("GONE") is None
    assert ENV.node_range("GONE") == (default(1), default(1))


@pytest.mark.parametrize("name", ["WORD", "RANGE"])
def test_a_word_is_not_a_number(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is .* not a whole number") as caught:
        ENV.integer(name)

    assert caught.value.where == f"environment: {name}"


def test_the_least_and_the_most() -> None:
    assert ENV.integer("ZERO") == Sourced(0, "ZERO")
    with pytest.raises(ConfigError, match=">= 1"):
        ENV.count("ZERO")
    with pytest.raises(ConfigError, match="from 1 to 65535"):
        Variables({"P": "65536"}).port("P")


@pytest.mark.parametrize("text", ["4:2", "0", "a:b", ":", "2:"])
def test_nodes_are_a_number_or_a_rising_range(text: str) -> None:
    env = Variables({"N": text})
    if text == "2:":
        assert env.node_range("N") == (Sourced(2, "N"), Sourced(2, "N"))
        return

    with pytest.raises(ConfigError, match="not a number of nodes"):
        env.node_range("N")


def test_a_range_is_refused_where_a_number_is_needed() -> None:
    assert ENV.node_range("RANGE") == (Sourced(2, "RANGE"), Sourced(4, "RANGE"))
    with pytest.raises(ConfigError, match="is the range '2:4'"):
        ENV.fixed_nodes("RANGE")
