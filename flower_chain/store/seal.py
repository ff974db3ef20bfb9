"""Sealing: encryption of stored bytes for those who may read them.

The content is encrypted once, with a key used for nothing else; that key is wrapped for each
recipient, who needs only the secp256k1 key of its account, or an RSA key of 3072 bits (the hybrid
encryption of papers/4 section 3.3). A sealed file, integers big-endian::

    offset     bytes    what
    0          3        "FCS" in ASCII
    3          1        version, 1
    4          2        a, the number of accounts that it is sealed for
    6          2        k, the number of RSA keys that it is sealed for; one of the two at least
    8          8        n, the length of the content
    16         33       the ephemeral public key E, compressed
    49         68 a     for each account
                 20       its address: the end of Keccak-256 of its public key
                 48       the content key, wrapped
    49+68a     404 k    for each RSA key
                 20       its name: the end of Keccak-256 of its public key in DER
                 384      the content key, wrapped
    s          12       nonce; s = 49 + 68 a + 404 k
    s+12       n + 16   the content: AES-256-GCM with the content key and that nonce; the associated
                        data are all that precedes the nonce, then the caller's own

For an account the content key is wrapped with AES-256-GCM, a nonce of 12 zero bytes and no
associated data, under HKDF-SHA256(S, no salt, info, 32 bytes), which no two files and no two
recipients of a file share. ``info`` is "flower-chain/seal/1" in ASCII, E, and the recipient's
public key, compressed. ``S`` is SHA-256 of the compressed point that ECDH on secp256k1 gives
(libsecp256k1's default).

For an RSA key it is wrapped with RSA-OAEP, SHA-256 for the hash and for MGF1; the label is
"flower-chain/seal/1", E, and the recipient's public key, in DER (SubjectPublicKeyInfo).

The private key of E is HKDF-SHA256(content key, no salt, "flower-chain/seal/1/ephemeral", 32
bytes): as new in every file as the content key. So whoever opens the file knows that E is that of
its content key, can make the part of the header anew that is for accounts, and sees that each of
them can open it. RSA-OAEP is randomised: whether the others can, only they see.

A wrap belongs to the file by E, and to the reader by its key. So who can open a file can wrap its
key for one more reader, without touching the file (:func:`rewrap`): for an account this is the very
wrap that would stand in the header.

So nobody can change the content or take a recipient away unseen. What this does not give: it does
not tell who sealed (anyone can), and one who seals in bad faith can wrap different keys for
different recipients. That is what the digest of the content is for, signed in the contribution;
and where it matters that all can open what one of them can, all have accounts, and a reader makes
the header anew.
"""

import os
import struct
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple

from coincurve import PrivateKey, PublicKey
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from eth_utils.address import to_checksum_address
from eth_utils.conversions import to_bytes
from eth_utils.crypto import keccak

from flower_chain import rsa
from flower_chain.errors import FormatError, SealError

_MAGIC = b"FCS"
_VERSION = 1
_HEAD = struct.Struct(">3sBHHQ33s")
_NAME_BYTES = 20
_NONCE_BYTES = 12
_TAG_BYTES = 16
_KEY_BYTES = 32
_WRAP_NONCE = bytes(_NONCE_BYTES)
_DOMAIN = b"flower-chain/seal/1"


class Kind(IntEnum):
    """What the key of a recipient is; the value is how many bytes its wrap has."""

    ACCOUNT = _KEY_BYTES + _TAG_BYTES
    RSA = rsa.BITS // 8

    @classmethod
    def of(cls, public_key: bytes) -> "Kind":
        """The kind of a public key, by its length."""
        return cls.RSA if len(public_key) == rsa.DER_BYTES else cls.ACCOUNT


class _Header(NamedTuple):
    ephemeral: bytes
    accounts: dict[bytes, bytes]  # their wraps, by address
    rsa: dict[bytes, bytes]  # by name

    @property
    def wraps(self) -> dict[bytes, bytes]:
        return self.accounts | self.rsa


def seal(data: bytes, recipients: Sequence[bytes], associated: bytes) -> bytes:
    """Encrypt `data` so that only the recipients can read them.

    Parameters
    ----------
    data : bytes
        The content.
    recipients : sequence of bytes
        Different public keys, from 1 to 65535 of each kind that there is: on secp256k1, compressed
        (33 bytes) or not (64 bytes, or 65 with the leading 4); of RSA, in DER (422 bytes).
    associated : bytes
        What the file is bound to, such as run, version and device; may be empty. It is not in the
        file: whoever opens it must give the same.

    Raises
    ------
    SealError
        If a recipient is not a public key or comes twice, or there are none or too many.
    """
    keys = [_public_key(recipient) for recipient in recipients]
    different = len({_name(key) for key in keys})
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
    private_key: bytes | RSAPrivateKey,
    associated: bytes,
    recipients: Sequence[bytes] | None = None,
    wrap: bytes | None = None,
) -> bytes:
    """Open what :func:`seal` made.

    Parameters
    ----------
    sealed : bytes
    private_key : bytes or RSAPrivateKey
        Of one of the recipients: 32 bytes, or an RSA key.
    associated : bytes
        As it was given to :func:`seal`.
    recipients : sequence of bytes, optional
        As they should have been given to it: then it is checked that it was sealed for these, and
        that each account among them can open it.
    wrap : bytes, optional
        What :func:`rewrap` made for `private_key`, which need not be a recipient's then.

    Raises
    ------
    SealError
        If `sealed` is not a sealed file of this version, or is truncated; if it was sealed for
        others; or if it, or what it is bound to, was changed.
    """
    header = _read_header(sealed)
    content_key = _unwrap(header, private_key, wrap)
    if recipients is not None:
        _check_recipients(header, recipients, content_key)
    start = _content_start(len(header.accounts), len(header.rsa))
    view = memoryview(sealed)
    bound = sealed[: start - _NONCE_BYTES] + associated
    try:
        return AESGCM(content_key).decrypt(view[start - _NONCE_BYTES : start], view[start:], bound)
    except InvalidTag as error:
        raise SealError(
            "the sealed file was changed, or is bound to something else: fetch it again, and "
            f"compare the associated data (here {associated!r})"
        ) from error


def rewrap(
    sealed: bytes,
    private_key: bytes | RSAPrivateKey,
    reader: bytes,
    wrap: bytes | None = None,
) -> bytes:
    """The content key of a sealed file, wrapped for one more reader.

    Parameters
    ----------
    sealed : bytes
        The file, which stays as it is.
    private_key : bytes or RSAPrivateKey
        Of one who can open it.
    reader : bytes
        The new reader's public key, as in :func:`seal`.
    wrap : bytes, optional
        Its own, if it can open the file by one.

    Returns
    -------
    bytes
        48 for an account, 384 for an RSA key: opens this file only, for this reader only.

    Raises
    ------
    SealError
        If `reader` is not a public key, or for the reasons of :func:`unseal`.
    """
    return _wrap_for(_unwrap(_read_header(sealed), private_key, wrap), _public_key(reader))


def is_wrap(wrap: bytes) -> bool:
    """Whether it has the size of a wrap, of whatever kind."""
    return len(wrap) in tuple(Kind)


def sealed_bytes(content_bytes: int, recipients: Iterable[Kind]) -> int:
    """The size of a sealed file: what a reader may expect of a store, in bytes."""
    kinds = list(recipients)
    start = _content_start(kinds.count(Kind.ACCOUNT), kinds.count(Kind.RSA))
    return start + content_bytes + _TAG_BYTES


def _content_start(accounts: int, keys: int) -> int:
    entries = accounts * _entry(Kind.ACCOUNT).size + keys * _entry(Kind.RSA).size
    return _HEAD.size + entries + _NONCE_BYTES


def _entry(kind: Kind) -> struct.Struct:
    return struct.Struct(f"{_NAME_BYTES}s{kind.value}s")


def _write_header(
    nbytes: int, recipients: Sequence[PublicKey | RSAPublicKey], content_key: bytes
) -> bytes:
    kinds = [Kind.RSA if isinstance(key, RSAPublicKey) else Kind.ACCOUNT for key in recipients]
    numbers = kinds.count(Kind.ACCOUNT), kinds.count(Kind.RSA)
    head = _HEAD.pack(_MAGIC, _VERSION, *numbers, nbytes, _point(content_key))
    accounts_first = sorted(zip(kinds, recipients, strict=True), key=lambda pair: pair[0])
    wraps = [_name(key) + _wrap_for(content_key, key) for _, key in accounts_first]
    return b"".join([head, *wraps])


def _read_header(sealed: bytes) -> _Header:
    if len(sealed) < _HEAD.size:
        raise SealError(f"{len(sealed)} bytes are no sealed file: one begins with {_HEAD.size}")
    magic, version, accounts, keys, nbytes, ephemeral = _HEAD.unpack_from(sealed)
    if magic != _MAGIC:
        raise SealError(f"not a sealed file: it begins with {magic!r}, not {_MAGIC!r}")
    if version != _VERSION:
        raise SealError(f"sealed in version {version}; this package opens version {_VERSION}")
    if len(sealed) != (expected := _content_start(accounts, keys) + nbytes + _TAG_BYTES):
        raise SealError(f"{len(sealed)} bytes where the header tells of {expected}: fetch it again")
    between = _HEAD.size + _entry(Kind.ACCOUNT).size * accounts
    view = memoryview(sealed)[: _content_start(accounts, keys) - _NONCE_BYTES]
    header = _Header(
        ephemeral,
        dict(_entry(Kind.ACCOUNT).iter_unpack(view[_HEAD.size : between])),
        dict(_entry(Kind.RSA).iter_unpack(view[between:])),
    )
    if len(header.wraps) != accounts + keys or not header.wraps:
        raise SealError(
            f"sealed for {len(header.wraps)} recipients where the header tells of {accounts + keys}"
        )
    return header


def _check_recipients(header: _Header, recipients: Sequence[bytes], content_key: bytes) -> None:
    keys = [_public_key(recipient) for recipient in recipients]
    accounts = [(_name(k), _wrap_for(content_key, k)) for k in keys if isinstance(k, PublicKey)]
    others = [_name(key) for key in keys if isinstance(key, RSAPublicKey)]
    if list(header.accounts.items()) != accounts or list(header.rsa) != others:
        raise SealError(f"not each of the {len(recipients)} recipients can open it")


def _wrap_for(content_key: bytes, recipient: PublicKey | RSAPublicKey) -> bytes:
    if isinstance(recipient, RSAPublicKey):
        return recipient.encrypt(content_key, _oaep(_point(content_key), recipient))
    return _wrap(content_key, _ephemeral(content_key), recipient)


def _wrap(content_key: bytes, ephemeral: PrivateKey, recipient: PublicKey) -> bytes:
    secret = ephemeral.ecdh(recipient.format())
    wrapping = _wrapping_key(secret, ephemeral.public_key.format(), recipient.format())
    return AESGCM(wrapping).encrypt(_WRAP_NONCE, content_key, None)


def _unwrap(header: _Header, private_key: bytes | RSAPrivateKey, wrap: bytes | None) -> bytes:
    """The content key, from the wrap in the header or from one's own."""
    own = private_key if isinstance(private_key, RSAPrivateKey) else _private_key(private_key)
    name = _name(own.public_key() if isinstance(own, RSAPrivateKey) else own.public_key)
    reader = to_checksum_address(name)
    found = header.wraps.get(name) if wrap is None else wrap
    if found is None:
        sealed_for = ", ".join(to_checksum_address(other) for other in list(header.wraps)[:10])
        raise SealError(f"not sealed for {reader}, but for {sealed_for}")
    try:
        content_key = _unwrap_by(own, header.ephemeral, found)
    except (InvalidTag, ValueError) as error:
        raise SealError(
            f"the key wrapped for {reader} was changed, or is for another file or reader"
        ) from error
    if len(content_key) != _KEY_BYTES or _point(content_key) != header.ephemeral:
        raise SealError(f"the key wrapped for {reader} is not the key of this file")
    return content_key


def _unwrap_by(own: PrivateKey | RSAPrivateKey, ephemeral: bytes, wrap: bytes) -> bytes:
    if isinstance(own, RSAPrivateKey):
        return own.decrypt(wrap, _oaep(ephemeral, own.public_key()))
    try:
        secret = own.ecdh(ephemeral)
    except ValueError as error:
        raise SealError(f"0x{ephemeral.hex()} is no ephemeral public key") from error
    wrapping = _wrapping_key(secret, ephemeral, own.public_key.format())
    return AESGCM(wrapping).decrypt(_WRAP_NONCE, wrap, None)


def _oaep(ephemeral: bytes, recipient: RSAPublicKey) -> OAEP:
    label = _DOMAIN + ephemeral + rsa.to_der(recipient)
    return OAEP(MGF1(SHA256()), SHA256(), label)


def _wrapping_key(secret: bytes, ephemeral: bytes, recipient: bytes) -> bytes:
    return _derived(secret, _DOMAIN + ephemeral + recipient)


def _ephemeral(content_key: bytes) -> PrivateKey:
    return PrivateKey(_derived(content_key, _DOMAIN + b"/ephemeral"))


def _point(content_key: bytes) -> bytes:
    """E."""
    return _ephemeral(content_key).public_key.format()


def _derived(secret: bytes, info: bytes) -> bytes:
    return HKDF(SHA256(), _KEY_BYTES, salt=None, info=info).derive(secret)


def _name(key: PublicKey | RSAPublicKey) -> bytes:
    if isinstance(key, RSAPublicKey):
        return to_bytes(hexstr=rsa.address_of(rsa.to_der(key)))
    return keccak(key.format(compressed=False)[1:])[-_NAME_BYTES:]


def _public_key(encoded: bytes) -> PublicKey | RSAPublicKey:
    try:
        if Kind.of(encoded) is Kind.RSA:
            return rsa.from_der(encoded)
        return PublicKey(b"\x04" + encoded if len(encoded) == 64 else encoded)
    except (ValueError, FormatError) as error:
        raise SealError(
            f"recipient 0x{encoded[:65].hex()} ({len(encoded)} bytes) is not a public key on "
            f"secp256k1: give 33, 64 or 65 bytes; nor one of RSA with {rsa.BITS} bits in DER"
        ) from error


def _private_key(secret: bytes) -> PrivateKey:
    # coincurve would fill a short key up. Its errors are not chained: they might quote the key.
    if len(secret) != _KEY_BYTES:
        raise SealError(f"a private key has 32 bytes, not {len(secret)}")
    try:
        return PrivateKey(secret)
    except ValueError:
        raise SealError("the private key is not in the range of secp256k1") from None
