"""Private keys on disk: whole, sealed, split and put together again."""

import json
from itertools import combinations
from pathlib import Path

import pytest
from key_holder import key_of

from flower_chain import cipher_files
from flower_chain.errors import ConfigError, KeyFileError
from flower_chain.privacy.ciphers import Secret

SECRET = key_of("paillier")
SCHEMES = ("paillier", "ckks")


def same(one: Secret, other: Secret) -> bool:
    pairs = (one.public_key, other.public_key), (one.private_key, other.private_key)
    return one.scheme == other.scheme and all(a == b for a, b in pairs)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("password", [None, "secret"])
def test_a_key_comes_back_from_its_file(tmp_path: Path, scheme: str, password: str | None) -> None:
    cipher_files.save(tmp_path / "key", key_of(scheme), password)

    assert same(cipher_files.load(tmp_path / "key", password), key_of(scheme))
    assert cipher_files.is_encrypted(tmp_path / "key") is (password is not None)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_the_private_key_is_not_in_a_sealed_file(tmp_path: Path) -> None:
    cipher_files.save(tmp_path / "plain", SECRET)
    cipher_files.save(tmp_path / "sealed", SECRET, "secret")
    plain, sealed = (json.loads((tmp_path / name).read_text()) for name in ("plain", "sealed"))
    assert plain["private"] not in json.dumps(sealed)


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    cipher_files.save(tmp_path / "key", SECRET)
    with pytest.raises(KeyFileError, match="never overwritten"):
        cipher_files.save(tmp_path / "key", SECRET)


@pytest.mark.parametrize(
    ("password", "why"), [("wrong", "password is wrong"), (None, "set FLOWER")]
)
def test_without_the_password_it_stays_closed(
    tmp_path: Path, password: str | None, why: str
) -> None:
    cipher_files.save(tmp_path / "key", SECRET, "secret")
    with pytest.raises(KeyFileError, match=why):
        cipher_files.load(tmp_path / "key", password)


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", "0x1234", '{"kind": "flower-chain cipher key"}', "[" * 10_000]
)
def test_what_is_no_key_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "key").touch(0o600)
    (tmp_path / "key").write_text(text)
    with pytest.raises(KeyFileError):
        cipher_files.load(tmp_path / "key")


def test_a_private_key_of_another_pair_is_refused(tmp_path: Path) -> None:
    cipher_files.save(tmp_path / "key", SECRET)
    cipher_files.save(tmp_path / "other", key_of("paillier", 1))
    content, other = (json.loads((tmp_path / name).read_text()) for name in ("key", "other"))
    (tmp_path / "key").write_text(json.dumps(content | {"private": other["private"]}))
    with pytest.raises(KeyFileError, match="not that of the public one"):
        cipher_files.load(tmp_path / "key")


def test_any_three_of_five_shares_tell_the_key(tmp_path: Path) -> None:
    paths = cipher_files.split(SECRET, tmp_path / "shares", 5, 3)
    for some in combinations(paths, 3):
        assert same(cipher_files.combine(some), SECRET)
    assert same(cipher_files.combine(paths), SECRET)
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in paths)


def test_a_key_of_ckks_is_split_too(tmp_path: Path) -> None:
    paths = cipher_files.split(key_of("ckks"), tmp_path / "shares", 2, 2)
    assert same(cipher_files.combine(paths), key_of("ckks"))


@pytest.mark.parametrize("some", [[0], [0, 1], [0, 1, 1]])
def test_too_few_shares_tell_nothing(tmp_path: Path, some: list[int]) -> None:
    paths = cipher_files.split(SECRET, tmp_path / "shares", 5, 3)
    with pytest.raises(KeyFileError, match="3 are needed"):
        cipher_files.combine([paths[number] for number in some])


def test_a_share_says_nothing_of_the_key(tmp_path: Path) -> None:
    paths = cipher_files.split(SECRET, tmp_path / "shares", 3, 2)
    private = SECRET.private_key
    assert all(private.hex() not in path.read_text() for path in paths)


def test_shares_of_two_splits_are_refused(tmp_path: Path) -> None:
    one, other = (cipher_files.split(SECRET, tmp_path / name, 3, 2) for name in "ab")
    with pytest.raises(KeyFileError, match="different splits"):
        cipher_files.combine([one[0], other[1]])


@pytest.mark.parametrize("name", ["part", "number"])
def test_a_changed_share_is_refused(tmp_path: Path, name: str) -> None:
    paths = cipher_files.split(SECRET, tmp_path / "shares", 3, 2)
    content = json.loads(paths[0].read_text())
    content[name] = "00" * 32 if name == "part" else 7
    paths[0].write_text(json.dumps(content))
    with pytest.raises(KeyFileError, match="don't fit together"):
        cipher_files.combine(paths[:2])


def test_a_key_is_no_share(tmp_path: Path) -> None:
    cipher_files.save(tmp_path / "key", SECRET)
    with pytest.raises(KeyFileError, match="holds no cipher share"):
        cipher_files.combine([tmp_path / "key"])


@pytest.mark.parametrize(("shares", "threshold"), [(3, 1), (2, 3), (256, 2)])
def test_numbers_that_make_no_split_are_refused(
    tmp_path: Path, shares: int, threshold: int
) -> None:
    with pytest.raises(ConfigError, match=f"{threshold} of {shares} shares"):
        cipher_files.split(SECRET, tmp_path, shares, threshold)


def test_a_simulation_makes_its_key_once(tmp_path: Path) -> None:
    one = cipher_files.load_or_create(tmp_path / "keys/ckks.key", "ckks")
    assert same(cipher_files.load_or_create(tmp_path / "keys/ckks.key", "ckks"), one)
