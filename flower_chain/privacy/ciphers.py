"""Sums of updates that nobody can take apart: what the ciphers have in common.

Devices encrypt an update under a public key, whoever has the encrypted updates can add them, each
times a whole number, and only who has the private key can decrypt: the sum, if that is all that it
is given (papers/1 section II.F; papers/2, where the holder of the key is called a collaborator).

An update becomes one vector, its arrays in canonical order, clipped to [-range, range]. A decrypted
sum is a vector of whole numbers, int64, in units of :attr:`Cipher.unit`. So all who have it compute
the same model from it, to the bit.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from flower_chain.errors import ConfigError
from flower_chain.updates import Arrays, ArraySpec, Format, check_finite

SCHEMES = {"paillier": ("Paillier", "PaillierSecret"), "ckks": ("Ckks", "CkksSecret")}
"""The classes of each cipher; its module and its optional extra are called like it."""

ENCRYPTED = "encrypted"
TOTAL = "sum"
MOST_VALUE_BITS = 32
MOST_WEIGHT = 2**24

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Terms:
    """What all agree on about a sum, beside the key.

    Parameters
    ----------
    value_range : float
        Values are clipped to [-value_range, value_range].
    value_bits : int
        Of the whole numbers that values are rounded to, with their sign. Paillier only.
    most_weight : int
        What the weights of a sum come to at most.

    Raises
    ------
    ConfigError
        If a term is out of range.
    """

    value_range: float
    value_bits: int
    most_weight: int

    def __post_init__(self) -> None:
        if not 0 < self.value_range <= 2**16:
            raise ConfigError(f"range = {self.value_range!r}: it must be in (0, 65536]")
        if not 8 <= self.value_bits <= MOST_VALUE_BITS:
            raise ConfigError(f"bits = {self.value_bits}: it must be from 8 to {MOST_VALUE_BITS}")
        if not 1 <= self.most_weight <= MOST_WEIGHT:
            raise ConfigError(
                f"the weights of a sum come to {self.most_weight}: it must be from 1 to "
                f"{MOST_WEIGHT}"
            )


@dataclass(frozen=True)
class EncryptedFormat(Format):
    """The format of an encrypted update, which also knows a ciphertext from other bytes.

    Parameters
    ----------
    specs : tuple of ArraySpec
    test : callable
        FormatError if arrays of these specs are no ciphertexts.
    """

    test: Callable[[Arrays], None]

    def check(self, arrays: Arrays) -> None:
        """Refuse what is not in this format, or no ciphertext, by a FormatError."""
        super().check(arrays)
        self.test(arrays)


class Cipher(ABC):
    """The public side: encrypts updates to a model, and adds encrypted ones.

    Parameters
    ----------
    public_key : bytes
    model : Format
        Of floats only: the mean of others would have to be rounded in the clear.
    terms : Terms

    Raises
    ------
    ConfigError
        If the key or the model can't be used.
    """

    unit: float
    """What 1 in a decrypted sum stands for."""

    def __init__(self, public_key: bytes, model: Format, terms: Terms) -> None:
        if whole := model.whole:
            raise ConfigError(
                f"the model's {whole[0].key!r} is {whole[0]}: encrypted sums are of floats only"
            )
        self.public_key, self.terms = public_key, terms
        self._layout = model.of_update()
        self.size = sum(spec.nbytes // spec.numpy_dtype.itemsize for spec in model.specs)
        if not self.size:
            raise ConfigError("the model has no values to encrypt")

    @cached_property
    def format(self) -> Format:
        """The format of an encrypted update: one array of bytes, a ciphertext in each row."""
        return EncryptedFormat((ArraySpec(ENCRYPTED, "U8", self._shape),), self._test)

    def encrypt(self, update: Arrays) -> dict[str, NDArray[Any]]:
        """An update, encrypted; never the same twice.

        Raises
        ------
        FormatError
            If it is not in the format of an update to the model, or not finite.
        """
        values = np.clip(self._flat(update), -self.terms.value_range, self.terms.value_range)
        return {ENCRYPTED: self._encrypted(values)}

    def clipped(self, update: Arrays) -> int:
        """How many values of an update are outside the range, and lose what is."""
        return int((np.abs(self._flat(update)) > self.terms.value_range).sum())

    def add(self, encrypted: Sequence[Arrays], weights: Sequence[int]) -> dict[str, NDArray[Any]]:
        """The sum of encrypted updates, each times its weight.

        Parameters
        ----------
        encrypted : sequence of Arrays
            In :attr:`format`, as :meth:`EncryptedFormat.check` finds them.
        weights : sequence of int
            Positive.

        Raises
        ------
        ValueError
            If the weights are not that, or come to more than the terms allow: a sum that could
            overflow is never made.
        """
        if len(weights) != len(encrypted) or min(weights, default=0) < 1:
            raise ValueError(f"weights {list(weights)} of {len(encrypted)} updates: all positive")
        if sum(weights) > self.terms.most_weight:
            most = self.terms.most_weight
            raise ValueError(f"the weights come to {sum(weights)}, but {most} are agreed at most")
        return {ENCRYPTED: self._added([each[ENCRYPTED] for each in encrypted], weights)}

    def mean(self, total: Arrays, weight: int) -> dict[str, NDArray[Any]]:
        """The mean update that a decrypted sum comes to.

        Parameters
        ----------
        total : Arrays
            As :meth:`Secret.decrypt` gives it.
        weight : int
            The sum of the weights.

        Raises
        ------
        FormatError
            If `total` is not a sum of updates to this model.
        """
        self.total_format.check(total)
        values = total[TOTAL] * (self.unit / weight)
        arrays, start = {}, 0
        for spec in self._layout.specs:
            stop = start + int(np.prod(spec.shape))
            part = values[start:stop].reshape(spec.shape)
            arrays[spec.key] = part.astype(spec.numpy_dtype)
            start = stop
        return arrays

    @cached_property
    def total_format(self) -> Format:
        """The format of a decrypted sum."""
        return Format((ArraySpec(TOTAL, "I64", (self.size,)),))

    def _flat(self, update: Arrays) -> NDArray[np.float64]:
        self._layout.check(update)
        check_finite(update)
        parts = [update[spec.key].reshape(-1) for spec in self._layout.specs]
        return np.concatenate(parts).astype(np.float64)

    @property
    @abstractmethod
    def _shape(self) -> tuple[int, int]:
        """How many ciphertexts an update has, and how many bytes each."""

    @abstractmethod
    def _test(self, encrypted: Arrays) -> None:
        """FormatError if a row is no ciphertext."""

    @abstractmethod
    def _encrypted(self, values: NDArray[np.float64]) -> NDArray[np.uint8]:
        """Ciphertexts of a vector, all within the range."""

    @abstractmethod
    def _added(
        self, rows: Sequence[NDArray[np.uint8]], weights: Sequence[int]
    ) -> NDArray[np.uint8]:
        """The ciphertexts of a sum."""


class Secret(ABC):
    """The private side."""

    scheme: ClassVar[str]

    @classmethod
    @abstractmethod
    def from_bytes(cls, public_key: bytes, private_key: bytes) -> Self:
        """The inverse of the two; FormatError if they are no such keys, or not of one pair."""

    @classmethod
    @abstractmethod
    def new(cls, bits: int) -> Self:
        """See :func:`new_secret`; ConfigError if there are no keys of so many bits."""

    @property
    @abstractmethod
    def public_key(self) -> bytes:
        """What the plan names."""

    @property
    @abstractmethod
    def private_key(self) -> bytes:
        """What only its holder has."""

    def decrypt(self, cipher: Cipher, encrypted: Arrays, weight: int) -> dict[str, Integers]:
        """The sum in an encrypted one, in units of :attr:`Cipher.unit`, shape ``(size,)``.

        Parameters
        ----------
        cipher : Cipher
            Of this key.
        encrypted : Arrays
            As :meth:`Cipher.add` gives it.
        weight : int
            The sum of the weights.

        Raises
        ------
        FormatError
            If it is encrypted under another key, or no sum of values that are within the range.
        """
        cipher.format.check(encrypted)
        return {TOTAL: self._decrypted(cipher, encrypted[ENCRYPTED], weight)}

    @abstractmethod
    def _decrypted(self, cipher: Any, rows: NDArray[np.uint8], weight: int) -> Integers:
        """As :meth:`decrypt`."""


def cipher_of(scheme: str, public_key: bytes, model: Format, terms: Terms) -> Cipher:
    """The public side of a cipher; ConfigError also if its extra is not installed."""
    made: Cipher = _classes(scheme)[0](public_key, model, terms)
    return made


def secret_of(scheme: str, public_key: bytes, private_key: bytes) -> Secret:
    """The private side of a cipher; ConfigError also if its extra is not installed."""
    made: Secret = _classes(scheme)[1].from_bytes(public_key, private_key)
    return made


def new_secret(scheme: str, bits: int) -> Secret:
    """A new pair of keys; `bits` are of Paillier's n, that of CKKS has one size."""
    made: Secret = _classes(scheme)[1].new(bits)
    return made


def _classes(scheme: str) -> tuple[Any, Any]:
    """Imported only now: what they need is an optional extra."""
    if scheme not in SCHEMES:
        raise ConfigError(f"encryption = {scheme!r}: it must be one of {', '.join(SCHEMES)}")
    try:
        module = import_module(f"flower_chain.privacy.{scheme}")
    except ImportError as fault:
        raise ConfigError(
            f'encryption = {scheme!r} needs {fault.name}: pip install "flower-chain[{scheme}]"'
        ) from None
    cipher, secret = (getattr(module, name) for name in SCHEMES[scheme])
    return cipher, secret
