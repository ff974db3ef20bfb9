import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any, Literal

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from eth_account import Account
from eth_account.messages import encode_defunct
from eth_utils.crypto import keccak
from golden_seal import PEM, RSA_READER
from web3 import Web3

from flower_chain.errors import FormatError, KeyFileError
from flower_chain.keys import (
    PASSWORD_VARIABLE,
    address_of,
    create,
    create_rsa,
    is_encrypted,
    load,
    load_or_create,
    load_reader,
    public_key,
    reader_of,
)
from flower_chain.rsa import from_der

# The first account of Hardhat's and Foundry's well-known test mnemonic.
KEY = "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"
ADDRESS = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"
PUBLIC_KEY = (
    "8318535b54105d4a7aae60c08fc45f9687181b4fdfc625bd1a753fa7397fed75"
    "3547f11ca8696646f2f3acb08e31016afac23e630c5d11f59f61fef57b0d2aa5"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys" / "device.key"


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def keystore(kdf: Literal["pbkdf2", "scrypt"] = "pbkdf2") -> dict[str, Any]:
    return Account.encrypt(bytes.fromhex(KEY), "open sesame", kdf=kdf, iterations=2)


class TestLoadOrCreate:
    def test_makes_a_key_that_loads_again(self, path: Path) -> None:
        assert load_or_create(path).key == load_or_create(path).key == load(path).key

    def test_makes_another_key_for_another_path(self, path: Path) -> None:
        assert load_or_create(path).key != load_or_create(path.with_name("other.key")).key

    def test_only_the_owner_may_read_file_and_folder(self, path: Path) -> None:
        load_or_create(path)
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700

    def test_leaves_nothing_but_the_key_file(self, path: Path) -> None:
        load_or_create(path)
        assert list(path.parent.iterdir()) == [path]

    def test_a_folder_that_was_there_keeps_its_mode(self, path: Path) -> None:
        path.parent.mkdir(mode=0o755)
        load_or_create(path)
        assert path.parent.stat().st_mode & 0o777 == 0o755

    def test_racing_callers_get_one_key(self, path: Path) -> None:
        barrier = Barrier(8)

        def race(_: int) -> bytes:
            barrier.wait()
            return bytes(load_or_create(path).key)

        with ThreadPoolExecutor(8) as pool:
            assert len(set(pool.map(race, range(8)))) == 1

    def test_one_who_comes_second_keeps_the_first_key(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(path, KEY)
        monkeypatch.setattr(Path, "exists", lambda _: False)
        assert load_or_create(path).address == ADDRESS
        assert list(path.parent.iterdir()) == [path]

    def test_a_malformed_key_is_not_replaced(self, path: Path) -> None:
        write(path, "")
        with pytest.raises(KeyFileError, match="malformed"):
            load_or_create(path)
        assert path.read_text() == ""

    def test_a_path_that_cannot_be_written_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(KeyFileError, match=r"can't make the key file .*/file/device.key"):
            load_or_create(tmp_path / "file" / "device.key")


class TestCreate:
    def test_makes_a_key_that_loads_again(self, path: Path) -> None:
        assert create(path).key == load(path).key
        assert not is_encrypted(path)

    def test_with_a_password_makes_a_keystore(self, path: Path) -> None:
        made = create(path, "open sesame")
        assert is_encrypted(path)
        assert load(path, "open sesame").key == made.key
        assert path.stat().st_mode & 0o777 == 0o600
        assert bytes(made.key).hex() not in path.read_text()

    def test_an_empty_password_is_refused(self, path: Path) -> None:
        with pytest.raises(KeyFileError, match="the password is empty"):
            create(path, "")
        assert not path.exists()

    def test_never_overwrites_a_key(self, path: Path) -> None:
        write(path, KEY)
        with pytest.raises(KeyFileError, match="is there already"):
            create(path)
        assert path.read_text() == KEY


class TestLoad:
    @pytest.mark.parametrize("text", [KEY, f"0x{KEY}\n", f" {KEY.upper()} "])
    def test_reads_hexadecimal(self, path: Path, text: str) -> None:
        assert load(write(path, text)).address == ADDRESS

    @pytest.mark.parametrize("kdf", ["pbkdf2", "scrypt"])
    def test_reads_a_keystore(self, path: Path, kdf: Literal["pbkdf2", "scrypt"]) -> None:
        assert load(write(path, json.dumps(keystore(kdf))), "open sesame").address == ADDRESS

    def test_takes_the_password_from_the_environment(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(PASSWORD_VARIABLE, "open sesame")
        assert load(write(path, json.dumps(keystore()))).address == ADDRESS

    def test_the_password_given_comes_first(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(PASSWORD_VARIABLE, "another")
        assert load(write(path, json.dumps(keystore())), "open sesame").address == ADDRESS

    def test_a_missing_password_tells_where_to_put_it(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)
        with pytest.raises(KeyFileError, match=f"encrypted: set {PASSWORD_VARIABLE}"):
            load(write(path, json.dumps(keystore())))

    def test_a_wrong_password_says_so(self, path: Path) -> None:
        with pytest.raises(KeyFileError, match="the password is wrong"):
            load(write(path, json.dumps(keystore())), "open barley")

    def test_a_missing_file_is_named(self, path: Path) -> None:
        with pytest.raises(KeyFileError, match=f"no key file {path}"):
            load(path)

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o777])
    def test_a_file_open_to_others_is_refused(self, path: Path, mode: int) -> None:
        with pytest.raises(KeyFileError, match=f"open to others .*chmod 600 {path}"):
            load(write(path, KEY, mode))

    def test_something_that_is_not_a_file_is_named(self, path: Path) -> None:
        path.mkdir(parents=True)
        with pytest.raises(KeyFileError, match=f"can't read the key file {path}"):
            load(path)

    @pytest.mark.parametrize(
        "text", ["", KEY[:-2], KEY + "00", KEY[:-1] + "g", "0x0x" + KEY[4:], "0" * 64, "f" * 64]
    )
    def test_a_malformed_key_is_refused_without_being_quoted(self, path: Path, text: str) -> None:
        with pytest.raises(KeyFileError, match="malformed") as caught:
            load(write(path, text))
        assert KEY[4:12] not in str(caught.value)
        assert caught.value.__cause__ is None

    @pytest.mark.parametrize(
        "content",
        [
            {},
            {"version": 1},
            {"version": 3},
            {"version": 3, "crypto": None},
            {"version": 3, "crypto": {}},
            {**keystore(), "crypto": {"kdf": "md5"}},
            {**keystore(), "crypto": {"kdf": "pbkdf2", "kdfparams": 7}},
            {**keystore(), "version": [3]},
        ],
    )
    def test_a_malformed_keystore_is_refused(self, path: Path, content: object) -> None:
        with pytest.raises(KeyFileError, match=str(path)):
            load(write(path, json.dumps(content)), "open sesame")

    def test_a_truncated_keystore_is_refused(self, path: Path) -> None:
        with pytest.raises(KeyFileError, match="not JSON"):
            load(write(path, json.dumps(keystore())[:-1]), "open sesame")

    def test_a_file_that_is_not_text_is_refused(self, path: Path) -> None:
        write(path, "")
        path.write_bytes(b"\xff\xfe" + os.urandom(30))
        with pytest.raises(KeyFileError, match="not text"):
            load(path)


class TestPublicKey:
    def test_has_64_bytes(self) -> None:
        assert public_key(Account.from_key(KEY)).hex() == PUBLIC_KEY

    def test_gives_the_address(self) -> None:
        assert address_of(bytes.fromhex(PUBLIC_KEY)) == ADDRESS

    def test_of_another_length_is_refused(self) -> None:
        with pytest.raises(FormatError, match="64 bytes"):
            address_of(bytes(65))

    def test_is_the_one_that_checks_signatures(self, path: Path) -> None:
        account = load_or_create(path)
        message = encode_defunct(b"hello")
        signature = account.sign_message(message).signature
        signer = Account.recover_message(message, signature=signature)
        assert signer == address_of(public_key(account))


class TestRsa:
    """The key files of readers that have no account."""

    @pytest.mark.parametrize("password", [None, "open sesame"])
    def test_a_key_loads_again(self, path: Path, password: str | None) -> None:
        made = create_rsa(path, password)
        assert public_key(load_reader(path, password)) == public_key(made)
        assert is_encrypted(path) == (password is not None)
        assert path.stat().st_mode & 0o777 == 0o600

    def test_a_key_is_never_overwritten(self, path: Path) -> None:
        write(path, KEY)
        with pytest.raises(KeyFileError, match="never overwritten"):
            create_rsa(path)
        assert load_reader(path).address == ADDRESS

    def test_an_empty_password_is_refused(self, path: Path) -> None:
        with pytest.raises(KeyFileError, match="the password is empty"):
            create_rsa(path, "")

    def test_where_an_account_is_needed_it_is_told(self, path: Path) -> None:
        write(path, PEM.decode())
        with pytest.raises(KeyFileError, match="holds an RSA key, which opens but can't sign"):
            load(path)

    def test_a_wrong_password_is_told(self, path: Path) -> None:
        create_rsa(path, "open sesame")
        with pytest.raises(KeyFileError, match="the password is wrong, or it is malformed"):
            load_reader(path, "open barley")

    def test_a_missing_password_is_told(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)
        create_rsa(path, "open sesame")
        with pytest.raises(KeyFileError, match=f"set {PASSWORD_VARIABLE}"):
            load_reader(path)

    @pytest.mark.parametrize(
        ("made", "match"),
        [
            (rsa.generate_private_key(65537, 2048), "an RSA key of 2048 bits"),
            (rsa.generate_private_key(3, 3072), "with the exponent 3"),
            (ec.generate_private_key(ec.SECP256R1()), "not of RSA"),
        ],
        ids=["2048", "exponent", "curve"],
    )
    def test_other_keys_are_refused(self, path: Path, made: Any, match: str) -> None:
        how = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write(path, made.private_bytes(*how).decode())
        with pytest.raises(KeyFileError, match=match):
            load_reader(path)

    def test_a_malformed_key_is_not_quoted(self, path: Path) -> None:
        write(path, PEM.decode().replace("MII", "SECRET"))
        with pytest.raises(KeyFileError, match="it is malformed") as caught:
            load_reader(path)
        assert "SECRET" not in str(caught.value)

    def test_a_reader_is_known_by_the_end_of_the_hash_of_its_key(self) -> None:
        der = RSA_READER.public_key
        assert reader_of(der) == RSA_READER.address == Web3.to_checksum_address(keccak(der)[-20:])
        assert reader_of(bytes.fromhex(PUBLIC_KEY)) == ADDRESS

    @pytest.mark.parametrize("key", [bytes(422), b"", bytes(64), bytes(65)])
    def test_what_is_no_public_key_is_refused(self, key: bytes) -> None:
        with pytest.raises(FormatError):
            reader_of(key)

    def test_another_encoding_of_a_key_is_refused(self) -> None:
        """Or one key had two names: here the length of the outer sequence takes a byte more."""
        der = RSA_READER.public_key
        with pytest.raises(FormatError):
            from_der(b"\x30\x83\x00" + der[2:])

    def test_the_key_is_not_shown(self) -> None:
        assert repr(RSA_READER) == "RsaKey()"
