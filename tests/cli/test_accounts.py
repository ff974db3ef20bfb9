"""flower-chain keys."""

import os
import pty
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from flower_chain.cli import app
from flower_chain.keys import PASSWORD_VARIABLE, is_encrypted, load, load_reader, public_key
from flower_chain.rsa import DER_BYTES, RsaKey

PASSWORD = "open sesame"


def keys(*words: object, typed: str | None = None) -> Result:
    """Call it."""
    return CliRunner().invoke(app, ["keys", *map(str, words)], input=typed)


@pytest.fixture(autouse=True)
def _no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)


def test_new_makes_a_key_and_prints_its_account_and_nothing_else(tmp_path):
    file = tmp_path / "device.key"
    assert keys("new", file).output == f"{load(file).address}\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_new_never_replaces_a_key(tmp_path):
    file = tmp_path / "device.key"
    keys("new", file)
    before = file.read_text()
    again = keys("new", file)
    assert again.exit_code == 1
    assert "is there already" in again.output
    assert file.read_text() == before


def test_new_takes_the_password_of_a_keystore_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv(PASSWORD_VARIABLE, PASSWORD)
    file = tmp_path / "device.key"
    assert keys("new", file, "--encrypt").exit_code == 0
    assert is_encrypted(file)
    assert keys("show", file).output == f"{load(file, PASSWORD).address}\n"


def test_new_asks_for_the_password_twice(tmp_path):
    file = tmp_path / "device.key"
    made = keys("new", file, "--encrypt", typed=f"{PASSWORD}\n{PASSWORD}\n")
    assert made.exit_code == 0
    assert PASSWORD not in made.output
    assert load(file, PASSWORD).address in made.output


def test_new_makes_nothing_if_the_passwords_differ(tmp_path):
    file = tmp_path / "device.key"
    made = keys("new", file, "--encrypt", typed=f"{PASSWORD}\nopen barley\n")
    assert made.exit_code == 1
    assert not file.exists()


def test_show_prints_the_public_key(tmp_path):
    file = tmp_path / "device.key"
    keys("new", file)
    assert keys("show", file, "--public-key").output == f"{public_key(load(file)).hex()}\n"


def test_new_makes_an_rsa_key_in_pem(tmp_path):
    file = tmp_path / "reader.pem"
    made = keys("new", "--rsa", file)
    reader = load_reader(file)
    assert isinstance(reader, RsaKey)
    assert made.output == keys("show", file).output == f"{reader.address}\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    shown = keys("show", file, "--public-key").output
    assert shown == f"{public_key(reader).hex()}\n"
    assert len(bytes.fromhex(shown)) == DER_BYTES


def test_new_encrypts_an_rsa_key_with_a_password(tmp_path):
    file = tmp_path / "reader.pem"
    made = keys("new", "--rsa", file, "--encrypt", typed=f"{PASSWORD}\n{PASSWORD}\n")
    assert "BEGIN ENCRYPTED PRIVATE KEY" in file.read_text()
    assert load_reader(file, PASSWORD).address in made.output
    assert f"set {PASSWORD_VARIABLE}" in keys("show", file).output


def test_show_makes_no_key(tmp_path):
    shown = keys("show", tmp_path / "device.key")
    assert shown.exit_code == 1
    assert "there is no key file" in shown.output
    assert list(tmp_path.iterdir()) == []


def test_show_without_a_terminal_tells_where_to_put_the_password(tmp_path, monkeypatch):
    file = tmp_path / "device.key"
    with monkeypatch.context() as patch:
        patch.setenv(PASSWORD_VARIABLE, PASSWORD)
        keys("new", file, "--encrypt")
    shown = keys("show", file)
    assert shown.exit_code == 1
    assert f"set {PASSWORD_VARIABLE}" in shown.output


def test_show_asks_at_a_terminal_and_echoes_no_password(tmp_path, monkeypatch):
    file = tmp_path / "device.key"
    with monkeypatch.context() as patch:
        patch.setenv(PASSWORD_VARIABLE, PASSWORD)
        keys("new", file, "--encrypt")
    code, printed = at_a_terminal(file, typed=PASSWORD)
    assert code == 0
    assert load(file, PASSWORD).address in printed
    assert PASSWORD not in printed


def at_a_terminal(file: Path, typed: str) -> tuple[int, str]:
    """`flower-chain keys show` with a terminal of its own: its exit status and what is on that."""
    ours, its = pty.openpty()
    command = [Path(sys.executable).parent / "flower-chain", "keys", "show", file]
    with subprocess.Popen(command, stdin=its, stdout=its, stderr=its, close_fds=True) as process:
        os.close(its)
        printed = ""
        while "Password of" not in printed:
            printed += os.read(ours, 1000).decode()
        os.write(ours, f"{typed}\n".encode())
        code = process.wait(30)
        printed += os.read(ours, 1000).decode()
    os.close(ours)
    return code, printed
