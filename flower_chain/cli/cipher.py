"""flower-chain cipher: the private keys of encrypted sums."""

from pathlib import Path
from typing import Annotated

import typer

from flower_chain import cipher_files, keys
from flower_chain.cli.accounts import new_password
from flower_chain.cli.arguments import password_of
from flower_chain.cli.reporting import reporting
from flower_chain.privacy.ciphers import Secret

app = typer.Typer(
    no_args_is_help=True,
    help="Make, show, split and combine the private keys of encrypted sums.",
)

KeyFile = Annotated[Path, typer.Argument(metavar="FILE", help="Key file.")]
Encrypt = Annotated[
    bool,
    typer.Option(
        "--encrypt",
        help=f"Seal it with a password, which is asked for, or read from the environment variable "
        f"{keys.PASSWORD_VARIABLE}.",
    ),
]


@app.command()
def new(
    key_file: KeyFile,
    scheme: Annotated[str, typer.Option(help="paillier or ckks.")] = "paillier",
    bits: Annotated[int, typer.Option(help="Of Paillier's n.")] = cipher_files.BITS,
    encrypt: Encrypt = False,
) -> None:
    """Make a pair of keys in a new file, mode 0600, and print the digest of the public one.

    Whoever runs the node that holds the key names the file as key-holder in its --node-config; the
    devices name the digest as cipher-key in theirs.
    """
    with reporting():
        made = cipher_files.create(key_file, scheme, bits, new_password() if encrypt else None)
        _tell(made)


@app.command()
def show(key_file: KeyFile) -> None:
    """Print the digest of a public key."""
    with reporting():
        _tell(_load(key_file))


@app.command()
def split(
    key_file: KeyFile,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the shares go.")],
    shares: Annotated[int, typer.Option(help="How many are made.")],
    threshold: Annotated[int, typer.Option(help="How many of them it takes.")],
) -> None:
    """Split a private key, so that its loss does not end a run: share-1.json and so on, mode 0600.

    Give each share to somebody else, and remove it here. The key file stays as it is.
    """
    with reporting():
        for path in cipher_files.split(_load(key_file), folder, shares, threshold):
            print(path)


@app.command()
def combine(
    shares: Annotated[list[Path], typer.Argument(metavar="SHARE...", help="Enough of them.")],
    out: Annotated[Path, typer.Option(help="The new key file.")],
    encrypt: Encrypt = False,
) -> None:
    """Put a private key together again, in a new file, and print the digest of the public one.

    What the lost key decrypted is noted beside it, in the file FILE.sums: where that is lost too,
    the new holder can be asked for a sum again.
    """
    with reporting():
        secret = cipher_files.combine(shares)
        cipher_files.save(out, secret, new_password() if encrypt else None)
        _tell(secret)


def _load(key_file: Path) -> Secret:
    return cipher_files.load(key_file, password_of(key_file, cipher_files.is_encrypted))


def _tell(secret: Secret) -> None:
    print(cipher_files.key_digest(secret.public_key))
