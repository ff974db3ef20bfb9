"""Sealing: encryption of stored bytes for those who may read them.

The content is encrypted once, with a key used for nothing else; that key is wrapped for each
recipient, who needs only the secp256k1 key of its account. A sealed file, integers big-endian::

    offset     bytes    what
    0          3        "FCS" in ASCII
    3          1        version, 1
    4          2        r, the number of recipients, from 1
    6          8        n, the length of the content
    14         33       the ephemeral public key E, compressed
    47         68 r     for each recipient
                 20       its account: the end of Keccak-256 of its public key
                 48       the content key, wrapped
    47+68r     12       nonce
    59+68r     n + 16   the content: AES-256-GCM with the content key and that nonce; the associated
                        data are all that precedes the nonce, then the caller's own

The content key is wrapped with AES-256-GCM, a nonce of 12 zero bytes and no associated data, under
HKDF-SHA256(S, no salt, info, 32 bytes), which no two files and no two recipients of a file share.
``info`` is "flower-chain/seal/1" in ASCII, E, and the recipient's public key, compressed. ``S`` is
SHA-256 of the compressed point that ECDH on secp256k1 gives (libsecp256k1's default).

The private key of E is HKDF-SHA256(content key, no salt, "flower-chain/seal/1/ephemeral", 32
bytes): as new in every file as the content key, and whoever opens the file can make its header anew
and see that each recipient can open it.

So nobody can change the content or take a recipient away unseen. What this does not give: it does
not tell who sealed (anyone can), and one who seals in bad faith can wrap different keys for
different recipients. That is what the digest of the content is for, signed in the contribution;
and where it matters that all can open what one of them can, a reader makes the header anew.
"""

import os
import struct
from collections.abc import Sequence
from typing import NamedTuple

from coincurve import PrivateKey, PublicKey
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from flower_chain.errors import SealError

_MAGIC = b"FCS"
_VERSION = 1
_HEAD = struct.Struct(">3sBHQ33s")
_WRAP = struct.Struct("20s48s")
_NONCE_BYTES = 12
_TAG_BYTES = 16
_KEY_BYTES = 32
_WRAP_NONCE = bytes(_NONCE_BYTES)
_DOMAIN = b"flower-chain/seal/1"


class _Header(NamedTuple):
    ephemeral: bytes
    wraps: dict[bytes, bytes]  # by account


def seal(data: bytes, recipients: Sequence[bytes], associated: bytes) -> bytes:
    """Encrypt `data` so that only the recipients can read them.

    Parameters
    ----------
    data : bytes
        The content.
    recipients : sequence of bytes
        From 1 to 65535 different public keys on secp256k1: compressed (33 bytes) or not (64 bytes,
        or 65 with the leading 4).
    associated : bytes
        What the file is bound to, such as run, version and device; may be empty. It is not in the
        file: whoever opens it must give the same.

    Raises
    ------
    SealError
        If a recipient is not a public key or comes twice, or there are none or too many.
    """
    keys = [_public_key(recipient) for recipient in recipients]
    different = len({key.format() for key in keys})
    if different != len(keys) or not 1 <= different <= 0xFFFF:
        raise SealError(
            f"{len(keys)} recipients, {different} of them different: seal for 1 to 65535 of them, "
            "each once"
        )
    content_key, nonce = os.urandom(_KEY_BYTES), os.urandom(_NONCE_BYTES)
    header = _write_header(len(data), keys, content_key)
    content = AESGCM(content_key).encrypt(nonce, data, header + associated)
    return b"".join([header, nonce, content])


def unseal(
    sealed: bytes,
    private_key: bytes,
    associated: bytes,
    recipients: Sequence[bytes] | None = None,
) -> bytes:
    """Open what :func:`seal` made.

    Parameters
    ----------
    sealed : bytes
    private_key : bytes
        Of one of the recipients, 32 bytes.
    associated : bytes
        As it was given to :func:`seal`.
    recipients : sequence of bytes, optional
        As they should have been given to it: then it is checked that each of them can open it.

    Raises
    ------
    SealError
        If `sealed` is not a sealed file of this version, or is truncated; if it was sealed for
        others; or if it, or what it is bound to, was changed.
    """
    header = _read_header(sealed)
    start = _content_start(len(header.wraps))
    content_key = _unwrap(header, _private_key(private_key))
    if recipients is not None:
        keys = [_public_key(recipient) for recipient in recipients]
        nbytes = len(sealed) - sealed_bytes(0, len(header.wraps))
        if not sealed.startswith(_write_header(nbytes, keys, content_key)):
            raise SealError(f"not each of the {len(recipients)} recipients can open it")
    view = memoryview(sealed)
    bound = sealed[: start - _NONCE_BYTES] + associated
    try:
        return AESGCM(content_key).decrypt(view[start - _NONCE_BYTES : start], view[start:], bound)
    except InvalidTag as error:
        raise SealError(
            "the sealed file was changed, or is bound to something else: fetch it again, and "
            f"compare the associated data (here {associated!r})"
        ) from error


def sealed_bytes(content_bytes: int, recipients: int) -> int:
    """The size of a sealed file: what a reader may expect of a store, in bytes."""
    return _content_start(recipients) + content_bytes + _TAG_BYTES


def _content_start(recipients: int) -> int:
    return _HEAD.size + _WRAP.size * recipients + _NONCE_BYTES


def _write_header(nbytes: int, recipients: Sequence[PublicKey], content_key: bytes) -> bytes:
    ephemeral = PrivateKey(_derived(content_key, _DOMAIN + b"/ephemeral"))
    point = ephemeral.public_key.format()
    head = _HEAD.pack(_MAGIC, _VERSION, len(recipients), nbytes, point)
    wraps = [_WRAP.pack(_account(key), _wrap(content_key, ephemeral, key)) for key in recipients]
    return b"".join([head, *wraps])


def _read_header(sealed: bytes) -> _Header:
    if len(sealed) < _HEAD.size:
        raise SealError(f"{len(sealed)} bytes are no sealed file: one begins with {_HEAD.size}")
    magic, version, count, nbytes, ephemeral = _HEAD.unpack_from(sealed)
    if magic != _MAGIC:
        raise SealError(f"not a sealed file: it begins with {magic!r}, not {_MAGIC!r}")
    if version != _VERSION:
        raise SealError(f"sealed in version {version}; this package opens version {_VERSION}")
    if len(sealed) != (expected := sealed_bytes(nbytes, count)):
        raise SealError(f"{len(sealed)} bytes where the header tells of {expected}: fetch it again")
    wraps = _WRAP.iter_unpack(memoryview(sealed)[_HEAD.size : _HEAD.size + _WRAP.size * count])
    by_account = dict(wraps)
    if len(by_account) != count or not count:
        raise SealError(
            f"sealed for {len(by_account)} recipients where the header tells of {count}"
        )
    return _Header(ephemeral, by_account)


def _wrap(content_key: bytes, ephemeral: PrivateKey, recipient: PublicKey) -> bytes:
    secret = ephemeral.ecdh(recipient.format())
    wrapping = _wrapping_key(secret, ephemeral.public_key.format(), recipient.format())
    return AESGCM(wrapping).encrypt(_WRAP_NONCE, content_key, None)


def _unwrap(header: _Header, own: PrivateKey) -> bytes:
    account = _account(own.public_key)
    if account not in header.wraps:
        sealed_for = ", ".join(to_checksum_address(other) for other in list(header.wraps)[:10])
        raise SealError(f"not sealed for {to_checksum_address(account)}, but for {sealed_for}")
    try:
        secret = own.ecdh(header.ephemeral)
    except ValueError as error:
        raise SealError(f"0x{header.ephemeral.hex()} is no ephemeral public key") from error
    wrapping = _wrapping_key(secret, header.ephemeral, own.public_key.format())
    try:
        return AESGCM(wrapping).decrypt(_WRAP_NONCE, header.wraps[account], None)
    except InvalidTag as error:
        raise SealError(
            f"the key wrapped for {to_checksum_address(account)} was changed"
        ) from error


def _wrapping_key(secret: bytes, ephemeral: bytes, recipient: bytes) -> bytes:
    return _derived(secret, _DOMAIN + ephemeral + recipient)


def _derived(secret: bytes, info: bytes) -> bytes:
    return HKDF(SHA256(), _KEY_BYTES, salt=None, info=info).derive(secret)


def _account(key: PublicKey) -> bytes:
    return keccak(key.format(compressed=False)[1:])[-20:]


def _public_key(encoded: bytes) -> PublicKey:
    try:
        return PublicKey(b"\x04" + encoded if len(encoded) == 64 else encoded)
    except ValueError as error:
        raise SealError(
            f"recipient 0x{encoded[:65].hex()} ({len(encoded)} bytes) is not a public key on "
            "secp256k1: give 33, 64 or 65 bytes"
        ) from error


def _private_key(secret: bytes) -> PrivateKey:
    # coincurve would fill a short key up. Its errors are not chained: they might quote the key.
    if len(secret) != _KEY_BYTES:
        raise SealError(f"a private key has 32 bytes, not {len(secret)}")
    try:
        return PrivateKey(secret)
    except ValueError:
        raise SealError("the private key is not in the range of secp256k1") from None
