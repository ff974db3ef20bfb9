"""The package as a whole: its public names, who knows whom, and that its settings are told once."""

import ast
import tomllib
from pathlib import Path

import pytest

import flower_chain
from flower_chain.cli.deploy import flat
from flower_chain.strategy.settings import DEFAULTS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "flower_chain"

FORBIDDEN = {
    "peers": {"flwr", "web3", "flower_chain.ledger"},
    "errors": {"flwr", "flower_chain.records", "web3"},
    "records": {"flwr", "web3", "flower_chain.ledger", "flower_chain.store"},
    "updates": {"flwr", "web3", "flower_chain.records"},
    "rules": {"flwr", "web3", "flower_chain.ledger", "flower_chain.store", "flower_chain.plan"},
    "ledger": {"flwr", "flower_chain.store", "flower_chain.plan", "flower_chain.strategy"},
    "store": {"flwr", "web3", "flower_chain.ledger", "flower_chain.records"},
    "privacy": {
        "flwr",
        "web3",
        "flower_chain.records",
        "flower_chain.ledger",
        "flower_chain.store",
    },
    "endpoint": {"flwr", "web3", "flower_chain.ledger", "flower_chain.store"},
    "examiner": {"flwr", "web3"},
    "rsa": {"flwr", "web3", "flower_chain.ledger", "flower_chain.store", "flower_chain.keys"},
    "keys": {"flwr", "web3", "flower_chain.ledger", "flower_chain.store"},
    "run": {"flwr", "flower_chain.strategy", "flower_chain.client"},
    "client": {"flower_chain.strategy", "flower_chain.run"},
    "strategy": {"web3", "flower_chain.client"},
    "verify": {"flwr", "flower_chain.strategy", "flower_chain.client"},
    "report": {"flwr", "flower_chain.strategy", "flower_chain.client"},
}
"""What each room must not know."""


def modules(room: str) -> list[Path]:
    """The files of a module or folder."""
    folder = PACKAGE / room
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{room}.py"]


def imported(path: Path) -> set[str]:
    """The modules that a file names in its imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("room", FORBIDDEN)
def test_a_room_does_not_know_what_it_should_not(room):
    for path in modules(room):
        for name in imported(path):
            known = {f for f in FORBIDDEN[room] if name == f or name.startswith(f"{f}.")}
            assert not known, f"{path} imports {name}"


def test_the_public_names_are_sorted_and_there():
    assert flower_chain.__all__ == sorted(flower_chain.__all__)
    assert all(hasattr(flower_chain, name) for name in flower_chain.__all__)


def app_config(app: str) -> dict[str, object]:
    """The run-config of an app."""
    parsed = tomllib.loads((ROOT / f"apps/{app}/pyproject.toml").read_text())
    return flat(parsed["tool"]["flwr"]["app"]["config"])


@pytest.mark.parametrize("app", ["digits", "census"])
def test_an_app_lists_every_setting_with_its_default(app):
    listed = {key: value for key, value in app_config(app).items() if key.startswith("chain.")}
    defaults = {f"chain.{name.replace('_', '-')}": value for name, value in DEFAULTS.items()}
    assert listed == defaults | {"chain.run": ""}


@pytest.mark.parametrize(
    "preset", sorted((ROOT / "strategies").glob("*.toml")), ids=lambda p: p.stem
)
def test_a_preset_names_settings_that_the_app_has(preset):
    assert set(flat(tomllib.loads(preset.read_text()))) <= set(app_config("digits"))
