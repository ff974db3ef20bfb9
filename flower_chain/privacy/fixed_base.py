"""Many powers of one base modulo one number, with a table of powers, on every core.

The numbers are too small for threads: gmpy2 can let others run meanwhile, but two that hand each
other the interpreter's lock every few microseconds take as long as one. So each further core gets a
process that runs this file as a program, and imports nothing but gmpy2.
"""

import math
import os
import pickle
import secrets
import subprocess
import sys
from array import array
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any

import gmpy2
from gmpy2 import mpz

MOST_WINDOW = 10
"""Bits: a table of larger ones leaves the processor's cache."""

FOR_A_PROCESS = 30_000
"""Multiplications that take as long as a process to start."""


def random_powers(base: Any, modulus: Any, length: int, count: int) -> list[Any]:
    """The base to the power of so many secret numbers.

    Each is drawn uniformly, and nobody gets to know it. It is cut into windows, and each takes one
    multiplication by what a table holds of the base (E. F. Brickell et al., "Fast exponentiation
    with precomputation", 1992, section 2).

    Parameters
    ----------
    base, modulus : mpz
    length : int
        Bits of each number, at least; up to a window more.
    count : int

    Returns
    -------
    list of mpz
    """
    window = min(range(1, MOST_WINDOW + 1), key=lambda w: (count + (1 << w)) / w)
    windows = math.ceil(length / window)
    cores = _cores(windows * (count + (1 << window)))
    with ExitStack() as stack:
        # First of all, as they take a moment to start.
        processes = [stack.enter_context(_start()) for _ in range(cores - 1)]
        bases = [base]
        while len(bases) < windows:
            bases.append(gmpy2.powmod(bases[-1], 1 << window, modulus))
        for number, process in enumerate(processes, start=1):
            _give(process, (modulus, window, bases[number::cores], count))
        found = _products(modulus, window, bases[::cores], count)
        for process in processes:
            found = [a * b % modulus for a, b in zip(found, _take(process), strict=True)]
    return found


def _products(modulus: Any, window: int, bases: Sequence[Any], count: int) -> list[Any]:
    """So many products, each of one random power below 2^window of every base."""
    mask, found = (1 << window) - 1, [mpz(1)] * count
    for base in bases:
        powers = [mpz(1)]
        while len(powers) <= mask:
            powers.append(powers[-1] * base % modulus)
        drawn = array("H", secrets.token_bytes(2 * count))
        found = [f * powers[d & mask] % modulus for f, d in zip(found, drawn, strict=True)]
    return found


def _cores(multiplications: int) -> int:
    """On how many that is fastest."""
    return max(1, min(os.cpu_count() or 1, multiplications // FOR_A_PROCESS))


def _start() -> "subprocess.Popen[bytes]":
    # -P: the modules beside this file are none of Python's.
    command = [sys.executable, "-P", __file__]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _give(process: "subprocess.Popen[bytes]", work: tuple[Any, ...]) -> None:
    assert process.stdin is not None
    # Why one is gone, _take tells.
    with suppress(BrokenPipeError), process.stdin as pipe:
        pickle.dump(work, pipe)


def _take(process: "subprocess.Popen[bytes]") -> list[Any]:
    assert process.stdout is not None
    written = process.stdout.read()
    if code := process.wait():
        raise ChildProcessError(f"{__file__} as a program ended with {code}")
    found: list[Any] = pickle.loads(written)
    return found


if __name__ == "__main__":
    pickle.dump(_products(*pickle.load(sys.stdin.buffer)), sys.stdout.buffer)
