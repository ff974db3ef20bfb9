"""Packed Paillier: many values in a ciphertext, and a sum that is exact.

The keys are phe's, and so are the ciphertexts: g = n + 1, and each is what ``raw_encrypt`` could
have made and ``raw_decrypt`` decrypts (P. Paillier, "Public-key cryptosystems based on composite
degree residuosity classes", 1999).

**Packing.** A value v becomes the whole number q = v / unit, rounded, and q + 2^(bits-1) fills a
slot of a plaintext. A slot has `bits` and as many more as the sum of the weights needs:
W (2^bits - 1) < 2^(bits + log2 W), so that no honest sum reaches the next slot. Who encrypts
something else than slots can spoil a sum; :meth:`PaillierSecret.decrypt` sees it where a slot
leaves what W values can come to.

**Obfuscation.** Each ciphertext is (1 + n m) h^r mod n^2, with h = (-x^2)^n for an x that is drawn
anew for every update, and r of half as many bits as n (I. Damgard, M. Jurik, J. B. Nielsen: "A
generalization of Paillier's public-key system", 2010; that half the length is enough rests on the
hardness of factoring: O. Goldreich, V. Rosen, "On the security of modular exponentiation", 2003).
The proof wants factors of n that are 3 modulo 4 and share no more than that, as
:meth:`PaillierSecret.new` makes them. With a table of powers of h each r takes one multiplication
for each of its windows, where phe takes an exponentiation by n. Shorter exponents would rest on a
stronger assumption.
"""

import math
import os
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, Self

import gmpy2
import numpy as np
from gmpy2 import mpz
from numpy.typing import NDArray
from phe.paillier import PaillierPrivateKey, PaillierPublicKey
from phe.util import getprimeover

from flower_chain.errors import ConfigError, FormatError
from flower_chain.privacy.ciphers import ENCRYPTED, Cipher, Integers, Secret, Terms
from flower_chain.privacy.fixed_base import random_powers
from flower_chain.updates import Arrays, Format

LEAST_BITS = 2048
"""Of n: shorter ones can be factored, or soon (NIST SP 800-57)."""

MOST_BITS = 8192


class Paillier(Cipher):
    """See the module; otherwise as :class:`Cipher`.

    Parameters
    ----------
    public_key : bytes
        n, big-endian.
    model : Format
    terms : Terms
    """

    def __init__(self, public_key: bytes, model: Format, terms: Terms) -> None:
        super().__init__(public_key, model, terms)
        n = int.from_bytes(public_key, "big")
        if not LEAST_BITS <= n.bit_length() <= MOST_BITS or n % 2 == 0 or public_key[0] == 0:
            raise ConfigError(
                f"a Paillier key of {n.bit_length()} bits: it must be odd, and have {LEAST_BITS} "
                f"to {MOST_BITS}"
            )
        self.key = PaillierPublicKey(n)
        self._n, self._modulus = mpz(n), mpz(n) ** 2
        self._offset = 1 << terms.value_bits - 1
        self.unit = terms.value_range / (self._offset - 1)
        self.slot_bits = terms.value_bits + (terms.most_weight - 1).bit_length()
        self.slots = (n.bit_length() - 1) // self.slot_bits

    @property
    def _shape(self) -> tuple[int, int]:
        return math.ceil(self.size / self.slots), 2 * len(self.public_key)

    def _test(self, encrypted: Arrays) -> None:
        product = mpz(1)
        for number, c in enumerate(_numbers(encrypted[ENCRYPTED])):
            if not 0 < c < self._modulus:
                raise FormatError(f"ciphertext {number} is not from 1 to n^2 - 1")
            product = product * c % self._n
        if gmpy2.gcd(product, self._n) != 1:
            raise FormatError("a ciphertext shares a factor with n")

    def _encrypted(self, values: NDArray[np.float64]) -> NDArray[np.uint8]:
        rows, n, modulus = self._shape[0], self._n, self._modulus
        plain = self.pack(np.rint(values / self.unit).astype(np.int64))
        encrypted = [
            (1 + n * m) * h % modulus for m, h in zip(plain, self._obfuscators(rows), strict=True)
        ]
        return _bytes(encrypted, self._shape[1])

    def _added(
        self, rows: Sequence[NDArray[np.uint8]], weights: Sequence[int]
    ) -> NDArray[np.uint8]:
        sums = [mpz(1)] * self._shape[0]
        for each, weight in zip(rows, weights, strict=True):
            powers = _numbers(each)
            if weight > 1:
                powers = [gmpy2.powmod(c, weight, self._modulus) for c in powers]
            sums = [s * c % self._modulus for s, c in zip(sums, powers, strict=True)]
        return _bytes(sums, self._shape[1])

    def pack(self, numbers: Integers) -> list[int]:
        """Whole numbers of `value_bits`, shape ``(size,)``, as plaintexts; first slot highest."""
        slots = np.zeros((self._shape[0], self.slots), ">u8")
        slots.reshape(-1)[: self.size] = numbers + self._offset
        bits = np.unpackbits(slots.view(np.uint8).reshape(*slots.shape, 8), axis=2)
        used = bits[:, :, 64 - self.slot_bits :].reshape(len(slots), -1)
        # packbits fills up at the end.
        spare = -used.shape[1] % 8
        return [int.from_bytes(row.tobytes(), "big") >> spare for row in np.packbits(used, axis=1)]

    def unpack(self, plain: Sequence[int], weight: int) -> Integers:
        """The inverse of :meth:`pack` for the sum of numbers with these weights.

        Raises
        ------
        FormatError
            If a slot holds what no such sum can come to.
        """
        n_bits = self.slots * self.slot_bits
        if max(plain).bit_length() > n_bits:
            raise FormatError("a sum of slots, it is not: encrypted under another key")
        width = math.ceil(n_bits / 8)
        spare = 8 * width - n_bits
        packed = b"".join((m << spare).to_bytes(width, "big") for m in plain)
        bits = np.unpackbits(np.frombuffer(packed, np.uint8).reshape(len(plain), width), axis=1)
        used = bits[:, :n_bits].reshape(len(plain) * self.slots, self.slot_bits)
        filled = np.pad(used, ((0, 0), (64 - self.slot_bits, 0)))
        slots = np.packbits(filled, axis=1).view(">u8").reshape(-1).astype(np.int64)
        found = slots[: self.size] - weight * self._offset
        if np.abs(found).max() > weight * (self._offset - 1) or slots[self.size :].any():
            raise FormatError(
                f"a sum that {weight} values from -{self._offset - 1} to {self._offset - 1} can't "
                "come to: another key, or somebody encrypted what is no update"
            )
        return found

    def _obfuscators(self, count: int) -> list[Any]:
        """h^r for so many r; see the module."""
        x = mpz(secrets.randbelow(int(self._n) - 1) + 1)
        h = gmpy2.powmod(-(x**2), self._n, self._modulus)
        return random_powers(h, self._modulus, math.ceil(self._n.bit_length() / 2), count)


class PaillierSecret(Secret):
    """The private side of :class:`Paillier`.

    Parameters
    ----------
    key : PaillierPrivateKey
        phe's.
    """

    scheme: ClassVar[str] = "paillier"

    def __init__(self, key: PaillierPrivateKey) -> None:
        self.key = key

    @classmethod
    def new(cls, bits: int) -> Self:
        """A new pair with an n of so many bits."""
        if not LEAST_BITS <= bits <= MOST_BITS or bits % 2:
            raise ConfigError(f"bits = {bits}: it must be even, from {LEAST_BITS} to {MOST_BITS}")
        while True:
            p, q = _prime(bits // 2), _prime(bits // 2)
            # gcd(p - 1, q - 1) = 2, as the proof for the obfuscators wants it; see the module.
            if gmpy2.gcd(p - 1, q - 1) == 2 and (p * q).bit_length() == bits:
                return cls(PaillierPrivateKey(PaillierPublicKey(p * q), p, q))

    @classmethod
    def from_bytes(cls, public_key: bytes, private_key: bytes) -> Self:
        """The inverse of :attr:`private_key`, which is the smaller factor of n."""
        n, p = (int.from_bytes(each, "big") for each in (public_key, private_key))
        if not 1 < p < n or n % p:
            raise FormatError("a private key that is not that of the public one")
        return cls(PaillierPrivateKey(PaillierPublicKey(n), p, n // p))

    @property
    def public_key(self) -> bytes:
        """n, big-endian."""
        return _big_endian(self.key.public_key.n)

    @property
    def private_key(self) -> bytes:
        """The smaller factor of n, big-endian."""
        return _big_endian(self.key.p)

    def _decrypted(self, cipher: Paillier, rows: NDArray[np.uint8], weight: int) -> Integers:
        key, numbers = self.key, _numbers(rows)
        halves = [(key.p, key.psquare, key.hp), (key.q, key.qsquare, key.hq)]
        # gmpy2 lets other threads run meanwhile.
        parts = [numbers[i :: _threads()] for i in range(_threads())]
        with ThreadPoolExecutor(_threads()) as threads:
            found = list(
                threads.map(
                    lambda half, part: _residues(part, *half),
                    *zip(*((half, part) for half in halves for part in parts), strict=True),
                )
            )
        mod_p, mod_q = _woven(found[: len(parts)]), _woven(found[len(parts) :])
        plain = [int(key.crt(mp, mq)) for mp, mq in zip(mod_p, mod_q, strict=True)]
        return cipher.unpack(plain, weight)


def _prime(bits: int) -> int:
    """One that is 3 modulo 4."""
    while (prime := int(getprimeover(bits))) % 4 != 3:
        pass
    return prime


def _residues(numbers: Sequence[Any], p: int, square: int, h: int) -> list[Any]:
    """The plaintexts modulo one factor of n (Paillier 1999, section 7)."""
    if not numbers:
        return []
    powers = gmpy2.powmod_base_list([c % square for c in numbers], p - 1, square)
    return [(power - 1) // p * h % p for power in powers]


def _woven(parts: Sequence[Sequence[Any]]) -> list[Any]:
    """What was dealt out in turn, in one row again."""
    woven: list[Any] = [None] * sum(map(len, parts))
    for number, part in enumerate(parts):
        woven[number :: len(parts)] = part
    return woven


def _threads() -> int:
    return os.cpu_count() or 1


def _numbers(rows: NDArray[np.uint8]) -> list[Any]:
    return [mpz(int.from_bytes(row.tobytes(), "big")) for row in rows]


def _bytes(numbers: Sequence[Any], width: int) -> NDArray[np.uint8]:
    joined = b"".join(int(number).to_bytes(width, "big") for number in numbers)
    return np.frombuffer(joined, np.uint8).reshape(len(numbers), width)


def _big_endian(number: int) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8, "big")
