"""Which keccak-256 the package hashes with."""

import os
import subprocess
import sys

import pytest

TOLD = """
import os, flower_chain, eth_hash.auto
from eth_utils import keccak
print(keccak(b"").hex()[:8], type(eth_hash.auto.keccak.hasher.__self__).__name__)
print(os.environ.get("ETH_HASH_BACKEND"))
"""


@pytest.mark.parametrize(
    ("chosen", "used"), [(None, "PySha3Backend"), ("pycryptodome", "CryptodomeBackend")]
)
def test_the_fast_one_unless_somebody_chose(chosen: str | None, used: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "ETH_HASH_BACKEND"}
    if chosen is not None:
        environment["ETH_HASH_BACKEND"] = chosen
    told = subprocess.run(
        [sys.executable, "-c", TOLD], env=environment, capture_output=True, text=True, check=True
    )
    assert told.stdout.splitlines() == [f"c5d24601 {used}", str(chosen)]
