"""Many secret powers of one base."""

import secrets

import gmpy2
import pytest
from gmpy2 import mpz

from flower_chain.privacy import fixed_base
from flower_chain.privacy.fixed_base import random_powers

PRIME = mpz(2) ** 127 - 1
ORDER = 7
ROOT = gmpy2.powmod(3, (PRIME - 1) // ORDER, PRIME)
"""Of that order: a power of it tells the exponent modulo 7."""


@pytest.mark.parametrize("cores", [1, 2, 3, 9])
def test_every_core_takes_its_share_and_all_powers_are_as_likely(
    monkeypatch: pytest.MonkeyPatch, cores: int
) -> None:
    monkeypatch.setattr(fixed_base, "_cores", lambda _: cores)
    found = random_powers(ROOT, PRIME, 40, 700)
    counts = [found.count(gmpy2.powmod(ROOT, k, PRIME)) for k in range(ORDER)]
    assert sum(counts) == 700
    # chi-square of 6 degrees of freedom: above 38.3 with a probability of 1e-6
    assert sum((count - 100) ** 2 / 100 for count in counts) < 38.3


@pytest.mark.parametrize(("count", "length"), [(1, 40), (500, 7 * 8), (2000, 9 * 7)])
def test_every_bit_counts(monkeypatch: pytest.MonkeyPatch, count: int, length: int) -> None:
    monkeypatch.setattr(fixed_base, "_cores", lambda _: 1)
    monkeypatch.setattr(secrets, "token_bytes", lambda n: b"\xff" * n)
    expected = gmpy2.powmod(3, (1 << length) - 1, PRIME)
    assert random_powers(mpz(3), PRIME, length, count) == [expected] * count


def test_a_process_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed_base, "_cores", lambda _: 2)
    monkeypatch.setattr(fixed_base, "__file__", "/no/such/file")
    with pytest.raises(ChildProcessError, match="/no/such/file as a program ended with"):
        random_powers(mpz(3), PRIME, 40, 100)
