"""The command line as a whole."""

import pytest
import typer

from flower_chain.cli import app

GROUP = typer.main.get_command(app)
MONEY = ("deploy", "enrol", "fund", "withdraw", "finish", "grant", "revoke")


def test_all_commands_are_there():
    assert set(GROUP.commands) == {*MONEY, "cipher", "keys", "show", "store", "verify"}


@pytest.mark.parametrize(
    "words",
    [
        (),
        *((name,) for name in GROUP.commands),
        ("keys", "new"),
        ("store", "gc"),
        ("cipher", "new"),
    ],
)
def test_each_tells_how_it_is_used(call, words):
    told = call(*words, "--help")
    assert told.exit_code == 0
    assert "Usage" in told.output


@pytest.mark.parametrize("name", MONEY)
def test_where_money_moves_there_is_a_dry_run(name):
    options = [option for p in GROUP.commands[name].params for option in p.opts]
    assert "--dry-run" in options
    assert not any("password" in option or "secret" in option for option in options)
