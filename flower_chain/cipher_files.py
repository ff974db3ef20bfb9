"""Private keys of encrypted sums on disk: whole, or split among several.

A key file is JSON, mode 0600: the cipher, its public key, and the private key, in base64 or sealed
with a password. A share holds the private key too, sealed with a key of which the share has a part:
as many of them as were said tell all of it, whichever they are, and fewer nothing (A. Shamir, "How
to share a secret", 1979, by pycryptodome).
"""

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from flower_chain import keys
from flower_chain.errors import ConfigError, FormatError, KeyFileError
from flower_chain.privacy.ciphers import Secret, new_secret, secret_of

BITS = 3072
"""Of Paillier's n: 128 bits of security (NIST SP 800-57), as everything else here has."""

KEY = "flower-chain cipher key"
SHARE = "flower-chain cipher share"
_NONCE_BYTES = 12
_HALF = 16
_SALT_BYTES = 16
_SCRYPT = {"n": 2**15, "r": 8, "p": 1}
_MOST_SHARES = 255


def create(path: Path, scheme: str, bits: int = BITS, password: str | None = None) -> Secret:
    """A new pair of keys, in a new file.

    Parameters
    ----------
    path : Path
        Where nothing is yet.
    scheme : str
        ``paillier`` or ``ckks``.
    bits : int
        Of Paillier's n.
    password : str, optional
        Seals the private key.

    Raises
    ------
    ConfigError
        If there is no such cipher, or it is not installed.
    KeyFileError
        If a file is there already or can't be made, or the password is empty.
    """
    keys.check_password(password)
    made = new_secret(scheme, bits)
    save(path, made, password)
    return made


def load_or_create(path: Path, scheme: str) -> Secret:
    """The key in a file; a new one where there is none: for simulations."""
    if not path.exists():
        made = new_secret(scheme, BITS)
        if keys.write_secret(path, _text(made, None)):
            return made
    return load(path)


def save(path: Path, secret: Secret, password: str | None = None) -> None:
    """Write a key to a new file; otherwise as :func:`create`."""
    _write_new(path, _text(secret, password))


def load(path: Path, password: str | None = None) -> Secret:
    """The key in a file.

    Parameters
    ----------
    path : Path
    password : str, optional
        For a sealed one; without it, the environment variable ``FLOWER_CHAIN_PASSWORD``.

    Raises
    ------
    KeyFileError
        If the file is missing, open to others or malformed, or the password missing or wrong.
    ConfigError
        If the cipher is not installed.
    """
    content = _read(path, KEY)
    try:
        private = _decoded(content, "private")
        if "salt" in content:
            key = _from_password(keys.password_of(path, password), _decoded(content, "salt"))
            private = _unsealed(key, private, content)
        return secret_of(content["scheme"], _decoded(content, "public"), private)
    except ConfigError:  # a ValueError, but no fault of the file
        raise
    except InvalidTag:
        raise KeyFileError(f"can't open the key in {path}: the password is wrong") from None
    except (KeyError, TypeError, ValueError, FormatError) as fault:
        raise KeyFileError(f"the key file {path} is malformed: {fault}") from None


def is_encrypted(path: Path) -> bool:
    """Whether :func:`load` needs a password; KeyFileError as there."""
    return "salt" in _read(path, KEY)


def split(secret: Secret, folder: Path, shares: int, threshold: int) -> list[Path]:
    """Split a key into files ``share-1.json`` and so on, in a folder.

    Parameters
    ----------
    secret : Secret
    folder : Path
        Made if it is not there.
    shares : int
    threshold : int
        How many of them are needed.

    Raises
    ------
    ConfigError
        If the numbers don't fit, or pycryptodome is not installed.
    KeyFileError
        If a file is there already, or can't be written.
    """
    if not 2 <= threshold <= shares <= _MOST_SHARES:
        raise ConfigError(
            f"{threshold} of {shares} shares: it must be at least 2 of at most {_MOST_SHARES}"
        )
    key = os.urandom(2 * _HALF)
    content = {"kind": SHARE, "shares": shares, "threshold": threshold, **_public(secret)}
    content["private"] = _encoded(_sealed(key, secret.private_key, content))
    shamir = _shamir()
    halves = [shamir.split(threshold, shares, half) for half in (key[:_HALF], key[_HALF:])]
    paths = []
    for (number, first), (_, second) in zip(*halves, strict=True):
        path = folder / f"share-{number}.json"
        _write_new(path, json.dumps({**content, "number": number, "part": (first + second).hex()}))
        paths.append(path)
    return paths


def combine(paths: Sequence[Path]) -> Secret:
    """The key that shares are of.

    Raises
    ------
    KeyFileError
        If a file is no share, or they are of several keys, too few, or were changed.
    ConfigError
        If the cipher or pycryptodome is not installed.
    """
    contents = [_read(path, SHARE) for path in paths]
    common = [{k: v for k, v in c.items() if k not in ("number", "part")} for c in contents]
    if any(each != common[0] for each in common):
        raise KeyFileError("these are shares of different keys, or of different splits of one")
    try:
        needed = int(contents[0]["threshold"])
        parts = {int(content["number"]): bytes.fromhex(content["part"]) for content in contents}
        if len(parts) < needed:
            raise KeyFileError(f"{len(parts)} different shares: {needed} are needed")
        some = list(parts.items())[:needed]
        shamir = _shamir()
        key = b"".join(
            shamir.combine([(number, part[half]) for number, part in some])
            for half in (slice(_HALF), slice(_HALF, None))
        )
        private = _unsealed(key, _decoded(contents[0], "private"), common[0])
        return secret_of(contents[0]["scheme"], _decoded(contents[0], "public"), private)
    except ConfigError:  # a ValueError, but no fault of the file
        raise
    except InvalidTag:
        raise KeyFileError("the shares don't fit together: one of them was changed") from None
    except (KeyError, TypeError, ValueError, FormatError) as fault:
        raise KeyFileError(f"the shares are malformed: {fault}") from None


def key_digest(public_key: bytes) -> str:
    """What a public key is known by: its SHA-256, in hex."""
    return hashlib.sha256(public_key).hexdigest()


def _text(secret: Secret, password: str | None) -> str:
    content = {"kind": KEY, **_public(secret)}
    private = secret.private_key
    if password is not None:
        salt = os.urandom(_SALT_BYTES)
        content["salt"] = _encoded(salt)
        private = _sealed(_from_password(password, salt), private, content)
    return json.dumps(content | {"private": _encoded(private)})


def _public(secret: Secret) -> dict[str, Any]:
    return {"scheme": secret.scheme, "public": _encoded(secret.public_key)}


def _write_new(path: Path, text: str) -> None:
    if not keys.write_secret(path, text):
        raise KeyFileError(f"{path} is there already: a key is never overwritten")


def _read(path: Path, kind: str) -> dict[str, Any]:
    text = keys.read_secret(path)
    try:
        content = json.loads(text)
        found = content["kind"]
    except (ValueError, TypeError, KeyError, RecursionError):
        found = None
    if found != kind:
        raise KeyFileError(f"{path} holds no {kind.removeprefix('flower-chain ')}")
    return dict(content)


def _sealed(key: bytes, private: bytes, content: dict[str, Any]) -> bytes:
    """AES-256-GCM with all that stands beside it associated, the nonce first."""
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, private, _associated(content))


def _unsealed(key: bytes, sealed: bytes, content: dict[str, Any]) -> bytes:
    return AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], _associated(content))


def _associated(content: dict[str, Any]) -> bytes:
    others = {name: value for name, value in content.items() if name != "private"}
    return json.dumps(others, sort_keys=True).encode()


def _from_password(password: str, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=32, **_SCRYPT).derive(password.encode())


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decoded(content: dict[str, Any], name: str) -> bytes:
    return base64.b64decode(content[name], validate=True)


def _shamir() -> Any:
    try:
        from Crypto.Protocol.SecretSharing import Shamir  # noqa: PLC0415 (an optional extra)
    except ImportError:
        raise ConfigError(
            'shares need pycryptodome: pip install "flower-chain[paillier]"'
        ) from None
    return Shamir
