"""What Flower's log tells of an exception that ends a run."""

import io
from collections.abc import Iterator
from logging import Formatter, StreamHandler, getLogger

import pytest

from flower_chain.errors import ConfigError
from flower_chain.strategy.one_line import tell_in_one_line


@pytest.fixture
def told() -> Iterator[io.StringIO]:
    """What Flower's log prints, with its traceback if it has one."""
    text = io.StringIO()
    handler = StreamHandler(text)
    handler.setFormatter(Formatter("%(levelname)s: %(message)s"))
    tell_in_one_line()
    getLogger("flwr").addHandler(handler)
    yield text
    getLogger("flwr").removeHandler(handler)


def ended_by(fault: Exception) -> None:
    """Flower's log of a ServerApp that raised."""
    try:
        raise fault
    except Exception as raised:
        getLogger("flwr").error("%s raised", "ServerApp", exc_info=raised)


def test_of_ours_is_told_in_one_line(told: io.StringIO) -> None:
    ended_by(ConfigError("pool = -1: it must not be negative"))

    assert told.getvalue() == (
        "ERROR: ServerApp raised: ConfigError: pool = -1: it must not be negative\n"
    )


def test_of_others_is_told_with_its_traceback(told: io.StringIO) -> None:
    ended_by(ZeroDivisionError("in train()"))

    first, second, *_, last = told.getvalue().splitlines()
    assert (first, second) == ("ERROR: ServerApp raised", "Traceback (most recent call last):")
    assert last == "ZeroDivisionError: in train()"


def test_what_is_no_exception_is_told_as_it_is(told: io.StringIO) -> None:
    getLogger("flwr").error("%d rounds", 3)

    assert told.getvalue() == "ERROR: 3 rounds\n"
