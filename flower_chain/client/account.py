"""The device's account."""

from pathlib import Path

from eth_account.signers.local import LocalAccount
from flwr.app import Context

from flower_chain import keys
from flower_chain.errors import ConfigError


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
