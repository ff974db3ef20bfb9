"""Encrypted sums: exact, compatible with phe, and closed to those without the key."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from key_holder import key_of
from phe.paillier import PaillierPublicKey

from flower_chain.errors import ConfigError, FormatError
from flower_chain.privacy import ckks, paillier
from flower_chain.privacy.ciphers import (
    ENCRYPTED,
    TOTAL,
    Cipher,
    Terms,
    cipher_of,
    new_secret,
    secret_of,
)
from flower_chain.privacy.paillier import Paillier, PaillierSecret
from flower_chain.updates import Arrays, Format

SIZE = 37
MODEL = Format.of({"w": np.zeros((5, 7), np.float32), "b": np.zeros(2, np.float64)})
TERMS = Terms(1.0, 16, 16)
SCHEMES = ("paillier", "ckks")


@pytest.fixture(autouse=True, scope="module")
def _short_keys() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paillier, "LEAST_BITS", 512)
        yield


def cipher(scheme: str = "paillier", terms: Terms = TERMS, number: int = 0) -> Any:
    return cipher_of(scheme, key_of(scheme, number).public_key, MODEL, terms)


def update(seed: int = 0, scale: float = 0.3) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "w": rng.normal(0, scale, (5, 7)).astype(np.float32),
        "b": rng.normal(0, scale, 2),
    }


def total_of(made: Cipher, updates: list[Arrays], weights: list[int]) -> Any:
    encrypted = made.add([made.encrypt(each) for each in updates], weights)
    secret = key_of("paillier" if isinstance(made, Paillier) else "ckks")
    return secret.decrypt(made, encrypted, sum(weights))


# --- both ciphers --------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_weighted_mean_comes_back(scheme: str) -> None:
    made, updates, weights = cipher(scheme), [update(n) for n in range(3)], [1, 2, 5]

    mean = made.mean(total_of(made, updates, weights), sum(weights))

    for key in MODEL.of_update().specs:
        clipped = [np.clip(each[key.key].astype(np.float64), -1, 1) for each in updates]
        expected = np.average(clipped, axis=0, weights=weights)
        assert np.abs(mean[key.key] - expected).max() <= made.unit
        assert mean[key.key].dtype == update()[key.key].dtype


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_update_is_never_encrypted_twice_alike(scheme: str) -> None:
    made = cipher(scheme)
    assert (made.encrypt(update())[ENCRYPTED] != made.encrypt(update())[ENCRYPTED]).any()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_encrypted_update_is_in_the_format_of_one(scheme: str) -> None:
    made = cipher(scheme)
    made.format.check(made.encrypt(update()))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_sum_is_in_the_format_too(scheme: str) -> None:
    made = cipher(scheme)
    made.format.check(made.add([made.encrypt(update())] * 2, [3, 4]))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_another_key_decrypts_nothing(scheme: str) -> None:
    made = cipher(scheme)
    encrypted = made.add([made.encrypt(update()) for _ in range(3)], [1, 1, 1])
    with pytest.raises(FormatError):
        key_of(scheme, 1).decrypt(made, encrypted, 3)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_values_outside_the_range_are_clipped_and_counted(scheme: str) -> None:
    made = cipher(scheme)
    large = {"w": np.full((5, 7), -3, np.float32), "b": np.array([0.5, 7.0])}

    mean = made.mean(total_of(made, [large], [1]), 1)

    assert made.clipped(large) == 36
    assert np.allclose(mean["w"], -1, atol=1e-4)
    assert np.allclose(mean["b"], [0.5, 1], atol=1e-4)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("weights", [[9, 8], [0, 1], [-1, 3], [1]])
def test_weights_that_could_overflow_or_are_none_are_refused(
    scheme: str, weights: list[int]
) -> None:
    made = cipher(scheme)
    encrypted = made.encrypt(update())
    with pytest.raises(ValueError, match="weights"):
        made.add([encrypted] * 2, weights)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_update_that_is_not_finite_is_refused(scheme: str) -> None:
    bad = update() | {"b": np.array([np.nan, 0])}
    with pytest.raises(FormatError, match="not finite"):
        cipher(scheme).encrypt(bad)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_model_with_integers_is_refused(scheme: str) -> None:
    model = Format.of({"n": np.zeros(3, np.int64)})
    with pytest.raises(ConfigError, match="'n' is I64"):
        cipher_of(scheme, key_of(scheme).public_key, model, TERMS)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_keys_come_back_from_their_bytes(scheme: str) -> None:
    key = key_of(scheme)
    again = secret_of(scheme, key.public_key, key.private_key)
    made = cipher(scheme)
    encrypted = made.add([made.encrypt(update())], [1])
    assert (
        again.decrypt(made, encrypted, 1)[TOTAL] == key.decrypt(made, encrypted, 1)[TOTAL]
    ).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_keys_of_two_pairs_do_not_fit(scheme: str) -> None:
    with pytest.raises(FormatError, match="not that of the public one"):
        secret_of(scheme, key_of(scheme).public_key, key_of(scheme, 1).private_key)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_no_key_is_refused(scheme: str) -> None:
    with pytest.raises(ConfigError):
        cipher_of(scheme, b"\0" * 64, MODEL, TERMS)


def test_the_public_key_must_not_hold_the_private_one() -> None:
    with pytest.raises(ConfigError, match="private"):
        cipher_of("ckks", key_of("ckks").private_key, MODEL, TERMS)


def test_a_cipher_that_there_is_not_is_named() -> None:
    with pytest.raises(ConfigError, match="encryption = 'rot13'"):
        new_secret("rot13", 0)


def test_an_extra_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise ImportError(name="phe")

    monkeypatch.setattr("flower_chain.privacy.ciphers.import_module", missing)
    with pytest.raises(ConfigError, match=r'needs phe: pip install "flower-chain\[paillier\]"'):
        new_secret("paillier", 2048)


@pytest.mark.parametrize(
    ("terms", "named"),
    [
        ((0.0, 16, 16), "range"),
        ((float("nan"), 16, 16), "range"),
        ((1.0, 4, 16), "bits"),
        ((1.0, 33, 16), "bits"),
        ((1.0, 16, 0), "weights"),
        ((1.0, 16, 2**25), "weights"),
    ],
)
def test_terms_out_of_range_are_named(terms: tuple[float, int, int], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Terms(*terms)


# --- Paillier ------------------------------------------------------------------------------------


@given(
    rows=st.lists(
        st.lists(st.integers(-(2**15) + 1, 2**15 - 1), min_size=SIZE, max_size=SIZE),
        min_size=1,
        max_size=4,
    ),
    data=st.data(),
)
@settings(max_examples=20, deadline=None)
def test_the_decrypted_sum_is_the_sum_of_whole_numbers(rows: Any, data: Any) -> None:
    weights = [data.draw(st.integers(1, 4)) for _ in rows]
    made = cipher()
    updates = [_update_of(np.array(row) * made.unit) for row in rows]

    total = total_of(made, updates, weights)[TOTAL]

    assert (
        total.tolist()
        == np.average(rows, axis=0, weights=weights)
        .__mul__(sum(weights))
        .round()
        .astype(int)
        .tolist()
    )


def _update_of(values: Any) -> dict[str, Any]:
    """The inverse of how a vector is made: float64 first, it is wider."""
    return {"b": values[:2], "w": values[2:].reshape(5, 7).astype(np.float32)}


@given(
    bits=st.integers(8, 32),
    most=st.integers(1, 2**20),
    numbers=st.data(),
)
@settings(max_examples=50, deadline=None)
def test_the_largest_sum_overflows_no_slot(bits: int, most: int, numbers: Any) -> None:
    made = cipher(terms=Terms(1.0, bits, most))
    largest = (1 << bits - 1) - 1
    sign = np.array(numbers.draw(st.lists(st.sampled_from([-1, 1]), min_size=SIZE, max_size=SIZE)))

    plain = [m * most for m in made.pack(largest * sign)]

    assert (made.unpack(plain, most) == most * largest * sign).all()
    assert max(plain) < made.key.n


def test_phe_decrypts_what_is_encrypted_here() -> None:
    made, key = cipher(), key_of("paillier").key
    values = np.arange(SIZE) / 100
    encrypted = made.encrypt(_update_of(values))[ENCRYPTED]

    plain = [key.raw_decrypt(int.from_bytes(row.tobytes(), "big")) for row in encrypted]

    assert np.abs(made.unpack(plain, 1) * made.unit - values).max() <= made.unit


def test_what_phe_encrypts_is_decrypted_here() -> None:
    made = cipher()
    public = PaillierPublicKey(made.key.n)
    numbers = np.arange(SIZE) - 20
    rows = [public.raw_encrypt(m).to_bytes(128, "big") for m in made.pack(numbers)]
    encrypted = {ENCRYPTED: np.frombuffer(b"".join(rows), np.uint8).reshape(-1, 128)}

    made.format.check(encrypted)
    assert (key_of("paillier").decrypt(made, encrypted, 1)[TOTAL] == numbers).all()


def test_a_sum_of_ours_and_phes_is_decrypted() -> None:
    made, key = cipher(), key_of("paillier").key
    ours = made.encrypt(_update_of(np.zeros(SIZE)))[ENCRYPTED]
    first = int.from_bytes(ours[0].tobytes(), "big")
    theirs = key.public_key.raw_encrypt(5)
    (expected, *_) = made.pack(np.zeros(SIZE, np.int64))
    assert key.raw_decrypt(first * theirs % key.public_key.nsquare) == expected + 5


@pytest.mark.parametrize(
    "bad",
    [
        lambda n: 0,
        lambda n: n * n,
        lambda n: n * n + 5,
        lambda n: key_of("paillier").key.p * 7,
    ],
    ids=["zero", "n^2", "above n^2", "a multiple of a factor"],
)
def test_what_is_no_ciphertext_is_refused(bad: Callable[[int], int]) -> None:
    made = cipher()
    rows = made.encrypt(update())[ENCRYPTED].copy()
    rows[1] = np.frombuffer(bad(made.key.n).to_bytes(128, "big"), np.uint8)
    with pytest.raises(FormatError, match=r"ciphertext"):
        made.format.check({ENCRYPTED: rows})


def test_who_encrypts_no_update_is_noticed_where_a_slot_can_not_hold_it() -> None:
    made, key = cipher(), key_of("paillier").key
    rows = made.encrypt(update())[ENCRYPTED].copy()
    spoilt = key.public_key.raw_encrypt(key.public_key.n - 1)
    rows[0] = np.frombuffer(spoilt.to_bytes(128, "big"), np.uint8)
    with pytest.raises(FormatError, match="another key"):
        key_of("paillier").decrypt(made, {ENCRYPTED: rows}, 1)


def test_a_key_that_is_too_short_or_even_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paillier, "LEAST_BITS", 2048)
    with pytest.raises(ConfigError, match="512 bits"):
        cipher()
    with pytest.raises(ConfigError, match="it must be odd"):
        Paillier((1 << 2047).to_bytes(256, "big"), MODEL, TERMS)
    with pytest.raises(ConfigError, match="bits = 1024"):
        PaillierSecret.new(1024)


def test_a_key_of_full_length_works() -> None:
    key = new_secret("paillier", 2048)
    assert isinstance(key, PaillierSecret)
    made = cipher_of("paillier", key.public_key, MODEL, TERMS)
    encrypted = made.add([made.encrypt(update(n)) for n in range(2)], [1, 2])
    p, q = key.key.p, key.key.q
    assert (p % 4, q % 4, math.gcd(p - 1, q - 1)) == (3, 3, 2)
    assert key.key.public_key.n.bit_length() == 2048
    assert made.mean(key.decrypt(made, encrypted, 3), 3)["b"] == pytest.approx(
        (update(0)["b"] + 2 * update(1)["b"]) / 3, abs=1e-4
    )


# --- CKKS ----------------------------------------------------------------------------------------


def test_the_error_of_ckks_is_at_most_a_millionth() -> None:
    made, updates = cipher("ckks"), [update(n) for n in range(10)]
    mean = made.mean(total_of(made, updates, [1] * 10), 10)["b"]
    expected = np.mean([np.clip(each["b"], -1, 1) for each in updates], axis=0)
    assert np.abs(mean - expected).max() <= 1e-6


@given(data=st.binary(max_size=200), place=st.integers(0, 300))
@settings(max_examples=30, deadline=None)
def test_bytes_that_are_no_ciphertext_of_ckks_are_refused(data: bytes, place: int) -> None:
    made = cipher("ckks")
    rows = np.zeros((1, ckks.ROW_BYTES), np.uint8)
    rows[0, place : place + len(data)] = np.frombuffer(data, np.uint8)
    with pytest.raises(FormatError):
        made.format.check({ENCRYPTED: rows})


def test_a_ciphertext_of_ckks_with_bytes_after_it_is_refused() -> None:
    made = cipher("ckks")
    rows = made.encrypt(update())[ENCRYPTED].copy()
    rows[0, -1] = 1
    with pytest.raises(FormatError, match="after it"):
        made.format.check({ENCRYPTED: rows})


def test_a_range_that_ckks_has_no_room_for_is_refused() -> None:
    with pytest.raises(ConfigError, match="range = 65536"):
        cipher("ckks", Terms(65536.0, 16, 16))
