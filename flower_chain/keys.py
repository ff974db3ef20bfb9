"""Account keys on disk.

A key file holds a private key, either in hexadecimal or encrypted as a web3 keystore (version 3);
its content tells which. Nobody but its owner may read it. No message here quotes a key.
"""

import json
import os
import secrets
import stat
from pathlib import Path
from typing import Any

from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_keys.datatypes import PrivateKey
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from flower_chain.durable import sync_directory
from flower_chain.errors import FormatError, KeyFileError

HOME = Path.home() / ".flower-chain"
"""Where keys and records are if nothing else is set."""

PASSWORD_VARIABLE = "FLOWER_CHAIN_PASSWORD"
"""The environment variable with the password of an encrypted key file."""


def load_or_create(path: Path) -> LocalAccount:
    """The account of the key file at `path`; a new one, not encrypted, where there is none.

    Of several processes that come at once, one makes the key and the others load it.

    Raises
    ------
    KeyFileError
        For the reasons of :func:`load`, or those of :func:`create` but the first.
    """
    made = None if path.exists() else _create(path, None)
    return made or load(path)


def create(path: Path, password: str | None = None) -> LocalAccount:
    """A new account, in a new key file; a missing folder is made, open to its owner only.

    Parameters
    ----------
    path : Path
        Where nothing is yet.
    password : str, optional
        Makes the file an encrypted keystore.

    Raises
    ------
    KeyFileError
        If a file is there already or can't be made, or the password is empty.
    """
    if password == "":
        raise KeyFileError("the password is empty")
    made = _create(path, password)
    if made is None:
        raise KeyFileError(f"{path} is there already: a key is never overwritten")
    return made


def load(path: Path, password: str | None = None) -> LocalAccount:
    """The account of the key file at `path`.

    Parameters
    ----------
    path : Path
        The key file.
    password : str, optional
        For an encrypted file; without it, the environment variable ``FLOWER_CHAIN_PASSWORD``.

    Raises
    ------
    KeyFileError
        If the file is missing, open to others or malformed, or the password missing or wrong.
    """
    text = _read(path)
    if _is_keystore(text):
        return _decrypted(path, text, password)
    return _plain(path, text)


def is_encrypted(path: Path) -> bool:
    """Whether :func:`load` needs a password for the key file at `path`.

    Raises
    ------
    KeyFileError
        If the file is missing or open to others.
    """
    return _is_keystore(_read(path))


def public_key(account: LocalAccount) -> bytes:
    """The account's public key: 64 bytes, the coordinates x and y on secp256k1."""
    return PrivateKey(bytes(account.key)).public_key.to_bytes()


def address_of(public_key: bytes) -> str:
    """The checksum address (EIP-55) of a public key.

    Raises
    ------
    FormatError
        If the key does not have 64 bytes.
    """
    if len(public_key) != 64:
        raise FormatError(f"a public key has 64 bytes (x and y), not {len(public_key)}")
    return to_checksum_address(keccak(public_key)[-20:])


def _create(path: Path, password: str | None) -> LocalAccount | None:
    """A new account in a new file; None where a file is."""
    account: LocalAccount = Account.create()
    text = f"0x{bytes(account.key).hex()}"
    if password is not None:
        text = json.dumps(Account.encrypt(account.key, password))
    try:
        path.parent.parent.mkdir(parents=True, exist_ok=True)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        is_new = _write_first(path, f"{text}\n")
        sync_directory(path.parent)
    except OSError as error:
        raise KeyFileError(f"can't make the key file {path}: {error}") from error
    return account if is_new else None


def _write_first(path: Path, text: str) -> bool:
    """Write a file, whole or not at all; False if another was first."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        _write(aside, text)
        # Unlike a rename, a link fails where another process was first, and keeps that key.
        os.link(aside, path)
    except FileExistsError:
        return False
    finally:
        aside.unlink(missing_ok=True)
    return True


def _write(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            # Of the open file, so that it can't be exchanged in between.
            _check_mode(path, os.fstat(file.fileno()).st_mode)
            return file.read()
    except FileNotFoundError as error:
        raise KeyFileError(f"there is no key file {path}") from error
    except UnicodeDecodeError:
        raise KeyFileError(f"the key file {path} is not text") from None
    except OSError as error:
        raise KeyFileError(f"can't read the key file {path}: {error}") from error


def _check_mode(path: Path, mode: int) -> None:
    if mode & 0o077:
        raise KeyFileError(
            f"the key file {path} is open to others (mode {stat.S_IMODE(mode):04o}): "
            f"run chmod 600 {path}"
        )


def _is_keystore(text: str) -> bool:
    return text.lstrip().startswith("{")


def _plain(path: Path, text: str) -> LocalAccount:
    digits = text.strip().removeprefix("0x")
    try:
        key = bytes.fromhex(digits)
        if len(key) == 32 and len(digits) == 64:
            return _account(key)
    except ValueError:
        pass
    raise KeyFileError(
        f"the key file {path} is malformed: it must hold a private key of secp256k1, 64 "
        "hexadecimal digits, or a web3 keystore in JSON"
    ) from None


def _decrypted(path: Path, text: str, password: str | None) -> LocalAccount:
    keystore = _keystore(path, text)
    if password is None:
        password = os.environ.get(PASSWORD_VARIABLE)
    if password is None:
        raise KeyFileError(f"the key file {path} is encrypted: set {PASSWORD_VARIABLE}")
    try:
        return _account(bytes(Account.decrypt(keystore, password)))
    except (ValueError, TypeError, LookupError, AttributeError, NotImplementedError) as error:
        # eth_keyfile indexes into whatever it is given; of its messages only this one is plain.
        wrong = "the password is wrong" if "MAC mismatch" in str(error) else "it is malformed"
        raise KeyFileError(f"can't decrypt the key file {path}: {wrong}") from None


def _keystore(path: Path, text: str) -> dict[str, Any]:
    try:
        keystore = json.loads(text)
    except ValueError:
        raise KeyFileError(f"the key file {path} is malformed: it is not JSON") from None
    if keystore.get("version") != 3:
        raise KeyFileError(
            f"the key file {path} is a keystore of version {keystore.get('version')}; use version 3"
        )
    return dict(keystore)


def _account(key: bytes) -> LocalAccount:
    account: LocalAccount = Account.from_key(key)
    return account
