"""Every exception of the package.

::

    FlowerChainError
    ├── ConfigError          a setting that can't be used; also a ValueError
    ├── KeyFileError         a key file that is missing, unreadable or open to others
    ├── FormatError          bytes or arrays that are not what the format says
    ├── SealError            a sealed file that can't be opened
    ├── StoreError           the off-chain store
    │   ├── NotStored        nothing under that CID
    │   ├── Damaged          the bytes are not those of the CID
    │   └── TooLarge         more bytes than are wanted
    ├── LedgerError          the chain
    │   ├── JournalError     the embedded ledger's journal is damaged, edited or in use
    │   ├── NodeError        the node can't be reached or gave no usable answer
    │   ├── WrongChain       the node is on another chain, or the contract is not there
    │   └── Reverted         the contract refused a transaction
    ├── RunEnded             a run that can't go on, by its own rules
    ├── TaskRefused          the device won't train on what it was sent
    └── Unverified           a record of the run that does not fit
"""


class FlowerChainError(Exception):
    """Base of everything that the package raises on purpose."""


class ConfigError(FlowerChainError, ValueError):
    """A setting that can't be used: names the setting, its value and the rule."""


class KeyFileError(FlowerChainError):
    """A key file that is missing, unreadable, malformed or open to others."""


class FormatError(FlowerChainError):
    """Bytes or arrays that are not what the format says."""


class SealError(FlowerChainError):
    """A sealed file that this key can't open, or that was changed."""


class StoreError(FlowerChainError):
    """The off-chain store could not do what was asked."""


class NotStored(StoreError):
    """Nothing is stored under the CID."""


class Damaged(StoreError):
    """The stored bytes are not those that the CID names."""


class TooLarge(StoreError):
    """More bytes are stored under the CID than are wanted."""


class LedgerError(FlowerChainError):
    """The chain could not do what was asked."""


class JournalError(LedgerError):
    """The embedded ledger's journal is damaged, edited or in use."""


class NodeError(LedgerError):
    """The node can't be reached or gave no usable answer."""


class WrongChain(LedgerError):
    """The node is on another chain than the run, or the contract is not on it."""


class Reverted(LedgerError):
    """The contract refused a transaction; the message names its custom error."""


class RunEnded(FlowerChainError):
    """A run that can't go on, by its own rules: too few take part, are left, or agree."""


class TaskRefused(FlowerChainError):
    """The device won't train on what it was sent."""


class Unverified(FlowerChainError):
    """A record of the run does not fit what it can be checked against."""
