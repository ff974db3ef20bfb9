"""A faster keccak-256 than the one that eth-hash takes by itself, where it is installed.

Each address, digest and storage slot of the embedded ledger is one. eth-hash settles on its backend
when it is first used, so this module is what the package imports first; the environment is as
before afterwards, since processes with other packages may inherit it.
"""

import os
from importlib.util import find_spec

from eth_hash.auto import keccak

CHOICE = "ETH_HASH_BACKEND"
"""eth-hash's variable: what somebody has chosen stays."""

if CHOICE not in os.environ and find_spec("sha3") is not None:
    os.environ[CHOICE] = "pysha3"
    try:
        keccak(b"")
    finally:
        del os.environ[CHOICE]
