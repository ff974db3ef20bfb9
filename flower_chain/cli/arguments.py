"""What several commands are called with, and what it stands for."""

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from eth_account.signers.local import LocalAccount

from flower_chain import keys
from flower_chain.errors import ConfigError
from flower_chain.examiner import Examiner

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run's records.")]
LedgerUrl = Annotated[
    str | None,
    typer.Option("--ledger", help="URL of a node of your own, if the run is on a node's chain."),
]
StorePlace = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL_OR_FOLDER",
        help="An IPFS node of your own, by the URL of its RPC, or a directory.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Tell what would happen; do nothing.")]


def account_of(key_file: Path) -> LocalAccount:
    """The account of a key file; who sits at a terminal is asked for the password of a keystore."""
    return keys.load(key_file, password_of(key_file))


def reader_from(key_file: Path) -> keys.Reader:
    """The account or the RSA key of a key file; the password likewise."""
    return keys.load_reader(key_file, password_of(key_file))


def password_of(
    key_file: Path, is_encrypted: Callable[[Path], bool] = keys.is_encrypted
) -> str | None:
    """The password that is asked for at a terminal, if a key file needs one."""
    ask = keys.PASSWORD_VARIABLE not in os.environ and sys.stdin.isatty()
    if not ask or not is_encrypted(key_file):
        return None
    password: str = typer.prompt(f"Password of {key_file}", hide_input=True, err=True)
    return password


def made_by(option: str, name: str) -> Any:
    """What MODULE:FUNCTION, the value of `option`, returns.

    Raises
    ------
    ConfigError
        If it can't be called.
    """
    module, _, function = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError, TypeError, LookupError, ValueError, OSError) as fault:
        raise ConfigError(f"{option} {name}: {fault}") from fault


def examiner_of(name: str) -> Examiner:
    """The Examiner that MODULE:FUNCTION returns, or ConfigError."""
    made = made_by("--examiner", name)
    if not isinstance(made, Examiner):
        raise ConfigError(f"--examiner {name}: it returned {made!r}, not an Examiner")
    return made
