"""What tests of several commands need."""

from collections.abc import Callable

import pytest
from typer.testing import CliRunner, Result

from flower_chain.cli import app

Call = Callable[..., Result]


@pytest.fixture(scope="session")
def call() -> Call:
    """Calls the command line with these words."""
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])
