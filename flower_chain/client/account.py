"""The device's account, and its node if it has one."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from eth_account.signers.local import LocalAccount
from flwr.app import Context

from flower_chain import keys
from flower_chain.errors import ConfigError
from flower_chain.records import Domain

if TYPE_CHECKING:
    from flower_chain.client.own_node import OwnNode


def key_file(context: Context) -> Path:
    """Where the key of the device is that `context` belongs to.

    Raises
    ------
    ConfigError
        If nothing says so.
    """
    if (path := context.node_config.get("key-file")) is not None:
        return Path(str(path))
    if (partition := context.node_config.get("partition-id")) is None:
        raise ConfigError("the device has no key: set key-file in the SuperNode's --node-config")
    return keys_folder(context) / f"device-{partition}.key"


def keys_folder(context: Context) -> Path:
    """Where the keys of a simulation are."""
    return Path(str(context.run_config.get("chain.keys") or keys.HOME / "keys")).expanduser()


def device_account(context: Context) -> LocalAccount:
    """The account of the device, made if it has none yet.

    Raises
    ------
    ConfigError
        If nothing says where its key is.
    KeyFileError
        If the key can't be used.
    """
    return keys.load_or_create(key_file(context))


@contextmanager
def node_of(context: Context, domain: Domain, account: LocalAccount) -> Iterator["OwnNode | None"]:
    """The node that the SuperNode's ``--node-config`` names under ``ledger``, if it does.

    Raises
    ------
    ConfigError
        If it names no key-file beside it.
    LedgerError
        If the node can't be reached, or is on another chain.
    """
    url, file = map(context.node_config.get, ("ledger", "key-file"))
    if url is None:
        yield None
        return
    if file is None:
        raise ConfigError(f"ledger = {url!r}: the node config must name a key-file too")
    # Only who has a node waits for it: a ledger brings web3 and an EVM.
    from flower_chain.client.own_node import OwnNode  # noqa: PLC0415

    with closing(OwnNode(str(url), domain, account, Path(f"{file}.outbox"))) as node:
        yield node
