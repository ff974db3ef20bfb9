"""flower-chain cipher."""

import stat

import pytest
from commands import assert_refused
from key_holder import key_of

from flower_chain import cipher_files
from flower_chain.cipher_files import key_digest
from flower_chain.keys import PASSWORD_VARIABLE


def test_new_makes_a_key_and_prints_the_digest_of_the_public_one(tmp_path, call):
    done = call("cipher", "new", tmp_path / "key", "--scheme", "paillier", "--bits", 2048)
    secret = cipher_files.load(tmp_path / "key")
    assert done.output == f"{key_digest(secret.public_key)}\n"
    assert len(secret.public_key) == 256
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_new_seals_the_key_with_a_password(tmp_path, call, monkeypatch):
    monkeypatch.setenv(PASSWORD_VARIABLE, "open sesame")
    made = call("cipher", "new", tmp_path / "key", "--scheme", "ckks", "--encrypt")
    assert cipher_files.is_encrypted(tmp_path / "key")
    assert call("cipher", "show", tmp_path / "key").output == made.output
    monkeypatch.setenv(PASSWORD_VARIABLE, "wrong")
    assert_refused(call("cipher", "show", tmp_path / "key"), "password is wrong")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--bits", 1024), "bits = 1024"),
        (("--bits", 2049), "bits = 2049"),
        (("--scheme", "rot13"), "encryption = 'rot13'"),
    ],
)
def test_new_refuses_what_is_no_key(tmp_path, call, words, named):
    assert_refused(call("cipher", "new", tmp_path / "key", *words), "ConfigError", named)


def test_a_key_is_split_and_put_together_again(tmp_path, call):
    cipher_files.save(tmp_path / "key", key_of("paillier"))
    words = (tmp_path / "key", tmp_path / "shares", "--shares", 4, "--threshold", 2)
    paths = call("cipher", "split", *words).output.split()
    assert len(paths) == 4

    done = call("cipher", "combine", paths[3], paths[1], "--out", tmp_path / "again")

    assert done.output == call("cipher", "show", tmp_path / "key").output
    assert cipher_files.load(tmp_path / "again").private_key == key_of("paillier").private_key


def test_too_few_shares_are_refused_in_one_line(tmp_path, call):
    paths = cipher_files.split(key_of("paillier"), tmp_path / "shares", 4, 3)
    done = call("cipher", "combine", *paths[:2], "--out", tmp_path / "again")
    assert_refused(done, "KeyFileError", "2 different shares: 3 are needed")
    assert not (tmp_path / "again").exists()


def test_what_is_no_share_is_refused_in_one_line(tmp_path, call):
    cipher_files.save(tmp_path / "key", key_of("paillier"))
    done = call("cipher", "combine", tmp_path / "key", "--out", tmp_path / "again")
    assert_refused(done, "KeyFileError", "holds no cipher share")
