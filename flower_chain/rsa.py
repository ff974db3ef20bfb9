"""RSA keys: of readers who have no account, and only open what is sealed."""

from dataclasses import dataclass, field
from typing import Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import (
    RSAPrivateKey,
    RSAPublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_public_key,
    load_pem_private_key,
)
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from flower_chain.errors import FormatError

BITS = 3072
EXPONENT = 65537
DER_BYTES = 422
"""Of a public key: they all have the same."""


@dataclass(frozen=True)
class RsaKey:
    """A private RSA key of 3072 bits.

    Parameters
    ----------
    key : RSAPrivateKey

    Raises
    ------
    FormatError
        If it has another size, or another exponent than 65537.
    """

    key: RSAPrivateKey = field(repr=False)

    def __post_init__(self) -> None:
        _check(self.key.public_key())

    @classmethod
    def new(cls) -> Self:
        """One that nobody has yet."""
        return cls(generate_private_key(EXPONENT, BITS))

    @classmethod
    def from_pem(cls, pem: bytes, password: bytes | None) -> Self:
        """The inverse of :meth:`to_pem`.

        Raises
        ------
        FormatError
            If it is no such key.
        ValueError, TypeError
            If the password is wrong, or missing.
        """
        key = load_pem_private_key(pem, password)
        if not isinstance(key, RSAPrivateKey):
            raise FormatError(f"a key of the kind {type(key).__name__}, not of RSA")
        return cls(key)

    def to_pem(self, password: bytes | None) -> bytes:
        """The key in PKCS #8 and PEM, encrypted if there is a password."""
        how: KeySerializationEncryption = NoEncryption()
        if password is not None:
            how = BestAvailableEncryption(password)
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how)

    @property
    def public_key(self) -> bytes:
        """As :func:`to_der` gives it."""
        return to_der(self.key.public_key())

    @property
    def address(self) -> str:
        """What the reader is known by: see :func:`address_of`."""
        return address_of(self.public_key)


def from_der(der: bytes) -> RSAPublicKey:
    """The public key with this DER encoding (SubjectPublicKeyInfo), 422 bytes.

    Raises
    ------
    FormatError
        If it is none, or its size, its exponent or its encoding is another than it must be.
    """
    try:
        key = load_der_public_key(der)
    except (ValueError, UnsupportedAlgorithm) as fault:
        raise FormatError(f"0x{der[:40].hex()}... is no public key in DER: {fault}") from None
    if not isinstance(key, RSAPublicKey):
        raise FormatError(f"a key of the kind {type(key).__name__}, not of RSA")
    _check(key)
    if to_der(key) != der:
        raise FormatError("an RSA key in another encoding than DER's own: it would have two names")
    return key


def to_der(key: RSAPublicKey) -> bytes:
    """The DER encoding (SubjectPublicKeyInfo) of a public key, 422 bytes."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def address_of(der: bytes) -> str:
    """What the reader with this public key is known by: no account, but named like one.

    The end of Keccak-256 of the DER encoding, 20 bytes, as a checksum address.
    """
    return to_checksum_address(keccak(der)[-20:])


def _check(key: RSAPublicKey) -> None:
    exponent = key.public_numbers().e
    if (key.key_size, exponent) != (BITS, EXPONENT):
        raise FormatError(
            f"an RSA key of {key.key_size} bits with the exponent {exponent}: it must have {BITS}, "
            f"and {EXPONENT}"
        )
