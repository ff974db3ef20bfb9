"""Random numbers that nobody can predict, as many at once as a model has weights.

They are made of the keystream of ChaCha20 (RFC 8439), under a key from the operating system's
generator. :mod:`flower_chain.privacy.output_perturbation` asks that generator for each number by
itself; here that would take minutes for the noise of a large model's training.
"""

import hashlib
import secrets
from collections.abc import Callable

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray

Shape = int | tuple[int, ...]
Draw = Callable[[int], NDArray[np.float64]]
_MOST = 2**22
"""Numbers drawn at once, so that the memory for them stays small beside a model's."""


class Source:
    """A stream of random numbers, all float64.

    Parameters
    ----------
    seed : str, optional
        For numbers that come again, which are private to nobody. Without it the key is drawn from
        the operating system's generator.

    Notes
    -----
    A uniform number is one of 2^64, so that normal ones reach 9.4 standard deviations and
    exponential ones 45 times their mean; beyond lies less than 1e-19 of the true distributions.
    """

    def __init__(self, seed: str | None = None) -> None:
        key = secrets.token_bytes(32)
        if seed is not None:
            key = hashlib.sha256(f"flower-chain noise {seed}".encode()).digest()
        self._stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()

    def uniform(self, size: int) -> NDArray[np.float64]:
        """Shape ``(size,)``, each above 0 and at most 1."""
        words = np.frombuffer(self._stream.update(bytes(8 * size)), "<u8")
        return np.asarray((words.astype(np.float64) + 0.5) * 2.0**-64)

    def normal(self, shape: Shape) -> NDArray[np.float64]:
        """Of mean 0 and variance 1, by the method of Box and Muller."""
        return self._filled(shape, self._normal)

    def laplace(self, shape: Shape) -> NDArray[np.float64]:
        """Of mean 0 and scale 1: the difference of two exponential numbers."""
        return self._filled(shape, lambda n: np.log(self.uniform(n)) - np.log(self.uniform(n)))

    def _normal(self, size: int) -> NDArray[np.float64]:
        half = (size + 1) // 2
        radius = np.sqrt(-2 * np.log(self.uniform(half)))
        angle = 2 * np.pi * self.uniform(half)
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:size]

    def _filled(self, shape: Shape, draw: Draw) -> NDArray[np.float64]:
        numbers = np.empty(shape, np.float64)
        flat = numbers.reshape(-1)
        for start in range(0, flat.size, _MOST):
            part = flat[start : start + _MOST]
            part[:] = draw(part.size)
        return numbers
