"""flower-chain keys: accounts and RSA keys, each in a file of its own."""

import os
from pathlib import Path
from typing import Annotated

import typer

from flower_chain import keys
from flower_chain.cli.arguments import reader_from
from flower_chain.cli.reporting import reporting

app = typer.Typer(
    no_args_is_help=True,
    help="Make and show keys: accounts of devices, owners and readers; RSA keys of readers.",
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
    rsa: Annotated[
        bool,
        typer.Option(
            "--rsa", help="Make an RSA key, in PEM: for a reader, who opens but signs nothing."
        ),
    ] = False,
) -> None:
    """Make a key in a new file, mode 0600, and print its address.

    The address of an RSA key is that of no account, but what its reader is known by.
    """
    with reporting():
        create = keys.create_rsa if rsa else keys.create
        print(create(key_file, new_password() if encrypt else None).address)


@app.command()
def show(
    key_file: KeyFile,
    public_key: Annotated[
        bool,
        typer.Option("--public-key", help="Print that instead: what a file of readers lists."),
    ] = False,
) -> None:
    """Print the address of a key."""
    with reporting():
        reader = reader_from(key_file)
        print(keys.public_key(reader).hex() if public_key else reader.address)


def new_password() -> str:
    """That of the environment, or what is asked for."""
    password = os.environ.get(keys.PASSWORD_VARIABLE)
    if password is None:
        password = typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    return password
