"""Keys on disk: of accounts, and of readers that have none.

A key file holds the private key of an account, either in hexadecimal or encrypted as a web3
keystore (version 3), or an RSA key in PEM, encrypted or not; its content tells which. Nobody but
its owner may read it. No message here quotes a key.
"""

import json
import os
import secrets
import stat
from pathlib import Path
from typing import Any

from coincurve import PublicKey
from cryptography.exceptions import UnsupportedAlgorithm
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_keys.datatypes import PrivateKey
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from flower_chain import rsa
from flower_chain.durable import sync_directory
from flower_chain.errors import FormatError, KeyFileError
from flower_chain.rsa import RsaKey

HOME = Path.home() / ".flower-chain"
"""Where keys and records are if nothing else is set."""

PASSWORD_VARIABLE = "FLOWER_CHAIN_PASSWORD"
"""The environment variable with the password of an encrypted key file."""

Reader = LocalAccount | RsaKey
"""Who may open what is sealed: both kinds have an ``address`` and a ``key``."""

PEM = "-----BEGIN"


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
    check_password(password)
    made = _create(path, password)
    if made is None:
        raise _is_there(path)
    return made


def create_rsa(path: Path, password: str | None = None) -> RsaKey:
    """A new RSA key, in a new key file; otherwise as :func:`create`."""
    check_password(password)
    made = RsaKey.new()
    pem = made.to_pem(None if password is None else password.encode())
    if not write_secret(path, pem.decode()):
        raise _is_there(path)
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
    reader = load_reader(path, password)
    if isinstance(reader, RsaKey):
        raise KeyFileError(
            f"the key file {path} holds an RSA key, which opens but can't sign: name an account's"
        )
    return reader


def load_reader(path: Path, password: str | None = None) -> Reader:
    """The account or the RSA key of the key file at `path`; otherwise as :func:`load`."""
    text = read_secret(path)
    if _is_pem(text):
        return _rsa(path, text, password)
    if _is_keystore(text):
        return _decrypted(path, text, password)
    return _plain(path, text)


def is_encrypted(path: Path) -> bool:
    """Whether :func:`load_reader` needs a password for the key file at `path`.

    Raises
    ------
    KeyFileError
        If the file is missing or open to others.
    """
    text = read_secret(path)
    return _is_keystore(text) or (_is_pem(text) and "ENCRYPTED" in text)


def public_key(reader: Reader) -> bytes:
    """The public key.

    Of an account 64 bytes, the coordinates x and y on secp256k1; of an RSA key its DER encoding
    (SubjectPublicKeyInfo), 422 bytes.
    """
    if isinstance(reader, RsaKey):
        return reader.public_key
    return PrivateKey(bytes(reader.key)).public_key.to_bytes()


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


def reader_of(public_key: bytes) -> str:
    """What a reader with this public key is known by: the address of an account, or likewise.

    See :func:`flower_chain.rsa.address_of`.

    Raises
    ------
    FormatError
        If it is neither a key on secp256k1, 64 bytes, nor an RSA key.
    """
    if len(public_key) != rsa.DER_BYTES:
        address = address_of(public_key)
        _check_on_curve(public_key)
        return address
    rsa.from_der(public_key)
    return rsa.address_of(public_key)


def _check_on_curve(public_key: bytes) -> None:
    try:
        PublicKey(b"\x04" + public_key)
    except ValueError:
        raise FormatError(f"0x{public_key.hex()} is no point of secp256k1") from None


def check_password(password: str | None) -> None:
    """KeyFileError if a password is empty."""
    if password == "":
        raise KeyFileError("the password is empty")


def _is_there(path: Path) -> KeyFileError:
    return KeyFileError(f"{path} is there already: a key is never overwritten")


def _create(path: Path, password: str | None) -> LocalAccount | None:
    """A new account in a new file; None where a file is."""
    account: LocalAccount = Account.create()
    text = f"0x{bytes(account.key).hex()}"
    if password is not None:
        text = json.dumps(Account.encrypt(account.key, password))
    return account if write_secret(path, f"{text}\n") else None


def write_secret(path: Path, text: str) -> bool:
    """Write a key file and the folder that it is in; False where a file is."""
    try:
        path.parent.parent.mkdir(parents=True, exist_ok=True)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        is_new = _write_first(path, text)
        sync_directory(path.parent)
    except OSError as error:
        raise KeyFileError(f"can't make the key file {path}: {error}") from error
    return is_new


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


def read_secret(path: Path) -> str:
    """The text of a key file; KeyFileError if it is missing, unreadable or open to others."""
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


def _is_pem(text: str) -> bool:
    return text.lstrip().startswith(PEM)


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
        "hexadecimal digits, a web3 keystore in JSON, or an RSA key in PEM"
    ) from None


def _decrypted(path: Path, text: str, password: str | None) -> LocalAccount:
    keystore = _keystore(path, text)
    try:
        return _account(bytes(Account.decrypt(keystore, password_of(path, password))))
    except (ValueError, TypeError, LookupError, AttributeError, NotImplementedError) as error:
        # eth_keyfile indexes into whatever it is given; of its messages only this one is plain.
        wrong = "the password is wrong" if "MAC mismatch" in str(error) else "it is malformed"
        raise KeyFileError(f"can't decrypt the key file {path}: {wrong}") from None


def _rsa(path: Path, text: str, password: str | None) -> RsaKey:
    secret = password_of(path, password).encode() if "ENCRYPTED" in text else None
    try:
        return RsaKey.from_pem(text.encode(), secret)
    except FormatError as fault:
        raise KeyFileError(f"the key file {path} holds {fault}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        what = "the password is wrong, or it" if secret else "it"
        raise KeyFileError(f"can't read the RSA key in {path}: {what} is malformed") from None


def password_of(path: Path, given: str | None) -> str:
    """The password of an encrypted key file: `given`, or that in the environment."""
    password = os.environ.get(PASSWORD_VARIABLE) if given is None else given
    if password is None:
        raise KeyFileError(f"the key file {path} is encrypted: set {PASSWORD_VARIABLE}")
    return password


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
