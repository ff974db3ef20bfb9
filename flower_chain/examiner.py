"""The owner's side of papers/1's class-sampled validation error scheme: its data, and its model."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flower_chain.errors import ConfigError, FormatError
from flower_chain.records import to_ppm
from flower_chain.rules.record_and_reward import Rule, ends, error_rate, evidence
from flower_chain.updates import Arrays, digest, pack

NDArray = np.ndarray[Any, np.dtype[Any]]
Predict = Callable[[Arrays, NDArray], NDArray]


class Examiner:
    """Draws validation samples for devices, and measures models on them.

    Parameters
    ----------
    x : ndarray, shape (n_samples, ...)
        The owner's validation data; devices get samples of it, so none of it should be elsewhere.
    y : ndarray of int, shape (n_samples,)
        The class of each, from 0.
    predict : callable
        From a model's arrays, by key, and samples, shape ``(n, ...)``, to class probabilities,
        shape ``(n, n_classes)``.

    Raises
    ------
    ConfigError
        If `x` and `y` don't fit together.
    """

    def __init__(self, x: NDArray, y: NDArray, predict: Predict) -> None:
        if len(x) != len(y) or len(y) == 0:
            raise ConfigError(f"{len(x)} validation samples with {len(y)} classes")
        if y.min() < 0:
            raise ConfigError(f"class {y.min()} in the validation data: classes count from 0")
        self._x, self._y = np.ascontiguousarray(x), np.ascontiguousarray(y, dtype=np.int64)
        self._predict = predict
        self._members = {int(label): np.flatnonzero(self._y == label) for label in np.unique(y)}
        self._last: tuple[Arrays, NDArray] | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the validation data, in hex: names it in the plan without showing it."""
        return digest(pack({"x": self._x, "y": self._y})).hex()

    def draw(
        self, seed: bytes, device: str, classes: Sequence[int], per_class: int
    ) -> tuple[NDArray, NDArray]:
        """Samples for one device and version: those that :meth:`choose` tells.

        Returns
        -------
        x : ndarray, shape (n_samples, ...)
        y : ndarray of int64, shape (n_samples,)
        """
        chosen = self.choose(seed, device, classes, per_class)
        return self._x[chosen], self._y[chosen]

    def choose(self, seed: bytes, device: str, classes: Sequence[int], per_class: int) -> NDArray:
        """Which samples a device gets for a version (papers/1 algorithm 2).

        Parameters
        ----------
        seed : bytes
            The version's seed, 32 bytes; its commitment is on the ledger before the draw.
        device : str
            Account of the device.
        classes : sequence of int
            The classes that it holds; see :meth:`known`.
        per_class : int
            m: samples of each class, or all that there are.

        Returns
        -------
        ndarray of int64, shape (n_samples,)
            Their places in the owner's data.
        """
        return np.concatenate(
            [self._sample(seed, device, label, per_class) for label in self.known(classes)]
        )

    def known(self, classes: Sequence[int]) -> list[int]:
        """Of `classes` those that the owner has data of, ascending; all if there are none."""
        return [label for label in sorted(classes) if label in self._members] or list(self._members)

    def confirms(
        self,
        rule: Rule,
        errors: Sequence[int],
        models: tuple[Arrays, Arrays],
        chosen: NDArray,
        tolerance_ppm: int,
    ) -> bool:
        """Whether errors that a device reports are those of its update.

        Parameters
        ----------
        rule : Rule
        errors : sequence of int
            As in the contribution, in parts per million.
        models : tuple of Arrays
            The model before and after the training. That before is measured on all data, once for
            all devices.
        chosen : ndarray
            What :meth:`choose` gave for the device.
        tolerance_ppm : int
            How far each may be off.
        """
        before, after = models
        try:
            tables = self.probabilities(before)[chosen], self._ask(after, self._x[chosen])
            measured = evidence(rule, tables, self._y[chosen])
        except FormatError:  # such a model gives no probabilities, so no device can have measured
            return False
        pairs = zip(ends(rule, errors), measured, strict=True)
        return all(abs(claimed - found) <= tolerance_ppm for claimed, found in pairs)

    def error(self, arrays: Arrays) -> int:
        """Share of all validation data that a model gets wrong, in parts per million.

        Raises
        ------
        FormatError
            If the model gives no class probabilities.
        """
        return to_ppm(error_rate(self.probabilities(arrays), self._y))

    def probabilities(self, arrays: Arrays) -> NDArray:
        """What a model says of all validation data; kept until another model is asked for."""
        last = self._last
        table = last[1] if last and _same(last[0], arrays) else self._ask(arrays, self._x)
        self._last = arrays, table
        return table

    def _ask(self, arrays: Arrays, x: NDArray) -> NDArray:
        """What the user's function says, which may fail in any way on a model that is far off."""
        try:
            return self._predict(arrays, x)
        except Exception as fault:
            raise FormatError(f"the examiner's predict failed: {fault!r}") from fault

    def _sample(self, seed: bytes, device: str, label: int, size: int) -> NDArray:
        members = self._members[label]
        text = f"flower-chain samples {device} {label}".encode()
        generator = np.random.Generator(
            np.random.PCG64(int.from_bytes(hashlib.sha256(seed + text).digest(), "big"))
        )
        return generator.permutation(members)[:size]


def _same(left: Arrays, right: Arrays) -> bool:
    if left is right:
        return True
    return left.keys() == right.keys() and all(np.array_equal(left[k], right[k]) for k in left)
