"""flower-chain keys: accounts, each in a file of its own."""

import os
from pathlib import Path
from typing import Annotated

import typer

from flower_chain import keys
from flower_chain.cli.arguments import account_of
from flower_chain.cli.reporting import reporting

app = typer.Typer(
    no_args_is_help=True,
    help="Make and show accounts: of devices, owners, and readers.",
)

KeyFile = Annotated[Path, typer.Argument(metavar="FILE", help="Key file or keystore.")]


@app.command()
def new(
    key_file: KeyFile,
    encrypt: Annotated[
        bool,
        typer.Option(
            "--encrypt",
            help=f"Make a keystore. Its password is asked for, or read from the environment "
            f"variable {keys.PASSWORD_VARIABLE}.",
        ),
    ] = False,
) -> None:
    """Make an account in a new file, mode 0600, and print its address."""
    with reporting():
        print(keys.create(key_file, _new_password() if encrypt else None).address)


@app.command()
def show(
    key_file: KeyFile,
    public_key: Annotated[bool, typer.Option("--public-key", help="Print that instead.")] = False,
) -> None:
    """Print the address of an account."""
    with reporting():
        account = account_of(key_file)
        print(keys.public_key(account).hex() if public_key else account.address)


def _new_password() -> str:
    password = os.environ.get(keys.PASSWORD_VARIABLE)
    if password is None:
        password = typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    return password
