"""A node that holds the key of encrypted sums, in a federation inside the process."""

import hashlib
from functools import cache
from pathlib import Path

from eth_account import Account
from eth_account.signers.local import LocalAccount
from federation import Federation
from local_grid import Node
from phe.paillier import generate_paillier_keypair

import flower_chain
from flower_chain import cipher_files
from flower_chain.privacy.ciphers import Secret, new_secret
from flower_chain.privacy.paillier import PaillierSecret

HOLDER: LocalAccount = Account.from_key(hashlib.sha256(b"key holder").digest())
BITS = 512
"""Of n in tests: fast, and not safe."""

RANGE = 4.0
"""The devices of tests take large steps."""


def key_of(scheme: str, number: int = 0) -> Secret:
    """A key pair; another for each number."""
    return _made(scheme, number)


@cache
def _made(scheme: str, _number: int) -> Secret:
    if scheme == "paillier":
        return PaillierSecret(generate_paillier_keypair(n_length=BITS)[1])
    return new_secret(scheme, 0)


def write_key(path: Path, account: LocalAccount) -> str:
    """A key file of an account."""
    path.parent.mkdir(exist_ok=True, parents=True)
    path.touch(0o600)
    path.write_text(bytes(account.key).hex())
    return str(path)


def hold(federation: Federation, scheme: str = "paillier", **node_config: str) -> Node:
    """Connect one more node, which holds a key."""
    folder = federation.path / "keys"
    file = folder / f"{scheme}.key"
    if not file.exists():
        cipher_files.save(file, key_of(scheme))
    return federation.grid.add(
        flower_chain.ClientApp(),
        key_holder=str(file),
        key_file=write_key(folder / "holder.key", HOLDER),
        **node_config,
    )


def notes_of(node: Node) -> Path:
    """Where a holder notes what it decrypted."""
    return Path(f"{node.context.node_config['key-holder']}.sums")
