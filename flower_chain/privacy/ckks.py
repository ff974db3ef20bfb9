"""CKKS by TenSEAL: sums of large models, fast and not exact.

Polynomials of 8192 coefficients and a modulus of two primes of 60 bits: more than 128 bits of
security, for which homomorphicencryption.org's standard allows a modulus of 218 bits. The scale is
2^40; a ciphertext holds 4096 values. Only additions are made: a weight is as many of them.

**What CKKS does not give.** A decrypted value is the sum plus the noise of the ciphertexts, and who
has both ciphertext and exact decryption can compute the private key (B. Li, D. Micciancio, "On the
security of homomorphic encryption on approximate numbers", 2021). The server has the ciphertext
and gets the decryption. So the holder of the key rounds to multiples of 2^-21, which are larger
than the noise: that hides it nearly always, but is no proof. If that is not enough, take Paillier.
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar, Self

import numpy as np
import tenseal
from numpy.typing import NDArray

from flower_chain.errors import ConfigError, FormatError
from flower_chain.privacy.ciphers import ENCRYPTED, Cipher, Integers, Secret, Terms
from flower_chain.updates import Arrays, Format

DEGREE = 8192
PRIMES = (60, 60)
SCALE = 2.0**40
VALUES = DEGREE // 2
ROUNDED = 2.0**-21
MOST_SUM = 2.0**17
"""A ciphertext has one prime, of 60 bits; the scale takes 40, the sign one: far from overflow."""

ROW_BYTES = 16 * DEGREE + 512
"""Two polynomials of 64-bit numbers; room for what comes before, and for what compression adds to
random bytes at most."""


class Ckks(Cipher):
    """See the module; otherwise as :class:`Cipher`.

    Parameters
    ----------
    public_key : bytes
        TenSEAL's context, with the public key only.
    model : Format
    terms : Terms
    """

    unit = ROUNDED

    def __init__(self, public_key: bytes, model: Format, terms: Terms) -> None:
        super().__init__(public_key, model, terms)
        if terms.value_range * terms.most_weight > MOST_SUM:
            raise ConfigError(
                f"range = {terms.value_range!r}: times the weights of a sum, {terms.most_weight}, "
                f"it must be at most {MOST_SUM:g}"
            )
        self._context = _context(public_key)
        if self._context.is_private():
            raise ConfigError("the public key of CKKS holds the private one too")

    @property
    def _shape(self) -> tuple[int, int]:
        return math.ceil(self.size / VALUES), ROW_BYTES

    def _test(self, encrypted: Arrays) -> None:
        for row in encrypted[ENCRYPTED]:
            parsed(self._context, row)

    def _encrypted(self, values: NDArray[np.float64]) -> NDArray[np.uint8]:
        rows = np.zeros((self._shape[0], VALUES))
        rows.reshape(-1)[: self.size] = values
        return np.stack([_row(tenseal.ckks_vector(self._context, row.tolist())) for row in rows])

    def _added(
        self, rows: Sequence[NDArray[np.uint8]], weights: Sequence[int]
    ) -> NDArray[np.uint8]:
        return np.stack(
            [
                _row(_sum([parsed(self._context, row) for row in column], weights))
                for column in zip(*rows, strict=True)
            ]
        )


class CkksSecret(Secret):
    """The private side of :class:`Ckks`.

    Parameters
    ----------
    public_key, private_key : bytes
        TenSEAL's contexts, each with that key only.
    """

    scheme: ClassVar[str] = "ckks"

    def __init__(self, public_key: bytes, private_key: bytes) -> None:
        self._public_key, self._private_key = public_key, private_key
        self._context = _context(private_key)

    @classmethod
    def new(cls, bits: int) -> Self:
        """A new pair; there is one size of it."""
        del bits
        context = _new_context()
        return cls(*(_written(context, public=public) for public in (True, False)))

    @classmethod
    def from_bytes(cls, public_key: bytes, private_key: bytes) -> Self:
        """The inverse of :attr:`public_key` and :attr:`private_key`."""
        try:
            found = cls(public_key, private_key)
            values = tenseal.ckks_vector(_context(public_key), [1.0]).serialize()
            fits = abs(tenseal.ckks_vector_from(found._context, values).decrypt()[0] - 1) < 0.5
        except (ValueError, RuntimeError) as fault:
            raise FormatError(f"no keys of CKKS: {fault}") from fault
        if not fits:
            raise FormatError("a private key that is not that of the public one")
        return found

    @property
    def public_key(self) -> bytes:
        """TenSEAL's context, with the public key only."""
        return self._public_key

    @property
    def private_key(self) -> bytes:
        """TenSEAL's context, with the private key only."""
        return self._private_key

    def _decrypted(self, cipher: Ckks, rows: NDArray[np.uint8], weight: int) -> Integers:
        found = np.concatenate([parsed(self._context, row).decrypt() for row in rows])
        limit = weight * cipher.terms.value_range + ROUNDED
        if not (np.abs(found[: cipher.size]) <= limit).all():
            raise FormatError(
                f"a sum that {weight} values within {cipher.terms.value_range:g} can't come to: "
                "another key, or somebody encrypted what is no update"
            )
        return np.rint(found[: cipher.size] / ROUNDED).astype(np.int64)


def parsed(context: Any, row: NDArray[np.uint8]) -> Any:
    """The ciphertext in a row, or FormatError if there is none that can be added to others."""
    length = int.from_bytes(row[:4].tobytes(), "big")
    if length > len(row) - 4 or row[4 + length :].any():
        raise FormatError(f"a ciphertext of {length} bytes, and others after it")
    try:
        vector = tenseal.ckks_vector_from(context, row[4 : 4 + length].tobytes())
        parts = vector.ciphertext()
    except (ValueError, RuntimeError) as fault:
        raise FormatError(f"no ciphertext of CKKS: {fault}") from fault
    if vector.size() != VALUES or len(parts) != 1:
        raise FormatError(f"{vector.size()} values in a ciphertext: there must be {VALUES}")
    (part,) = parts
    if part.size() != 2 or part.scale != SCALE or part.is_transparent():
        raise FormatError(
            f"a ciphertext of {part.size()} polynomials and scale {part.scale:g}: it must have 2, "
            f"not of zeros, and {SCALE:g}"
        )
    return vector


def _sum(vectors: Sequence[Any], weights: Sequence[int]) -> Any:
    total = None
    for vector, weight in zip(vectors, weights, strict=True):
        power, rest = vector, weight
        while rest:
            if rest & 1:
                total = power if total is None else total + power
            rest >>= 1
            power = power + power if rest else power
    return total


def _row(vector: Any) -> NDArray[np.uint8]:
    """A ciphertext in a row: its length, big-endian, the bytes, and zeros."""
    data = bytes(vector.serialize())
    if len(data) > ROW_BYTES - 4:
        raise FormatError(f"a ciphertext of {len(data)} bytes: {ROW_BYTES - 4} at most")
    row = (len(data).to_bytes(4, "big") + data).ljust(ROW_BYTES, b"\0")
    return np.frombuffer(row, np.uint8)


def _written(context: Any, *, public: bool) -> bytes:
    return bytes(
        context.serialize(
            save_public_key=public,
            save_secret_key=not public,
            save_galois_keys=False,
            save_relin_keys=False,
        )
    )


def _context(data: bytes) -> Any:
    """A context of our parameters, or ConfigError."""
    try:
        context = tenseal.context_from(data)
        fits = _parameters(context) == _agreed() and context.global_scale == SCALE
    except (ValueError, RuntimeError) as fault:
        raise ConfigError(f"no key of CKKS: {fault}") from None
    if not fits:
        raise ConfigError("a key of CKKS with other parameters than are used here")
    return context


@cache
def _agreed() -> Any:
    return _parameters(_new_context())


def _parameters(context: Any) -> Any:
    """SEAL's hash of scheme, degree and primes."""
    return context.seal_context().data.key_parms_id()


def _new_context() -> Any:
    context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, DEGREE, coeff_mod_bit_sizes=[*PRIMES])
    context.global_scale = SCALE
    return context
