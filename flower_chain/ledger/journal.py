"""The embedded ledger's memory: every signed transaction, in order, in a file.

The first line describes the genesis, each further line one block with its transaction. All are JSON
objects on a line of their own, flushed to the disk before the transaction counts. A line holds the
hash of its block, which covers the transaction, the time, the state and, through the parent's hash,
everything before: replaying the journal on an EVM finds any edit, but not that whole lines were cut
off the end, which only another witness could know. A last line without its line feed
was cut short by a crash before anybody was told of the transaction, and is dropped.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from eth_utils.address import is_address
from eth_utils.hexadecimal import is_hex

from flower_chain.durable import open_locked, sync_directory
from flower_chain.errors import JournalError

FORMAT = "flower-chain journal 1"


@dataclass(frozen=True)
class Genesis:
    """How the chain begins.

    Parameters
    ----------
    chain_id : int
        Drawn at random, so that no signature holds on two chains.
    time : int
        In seconds since 1970.
    funded : tuple of str
        Accounts that can pay for gas.
    """

    chain_id: int
    time: int
    funded: tuple[str, ...]
    format: str = FORMAT

    def __post_init__(self) -> None:
        _require_whole(chain_id=self.chain_id, time=self.time)
        if not all(is_address(account) for account in self.funded):
            raise ValueError(f"funded {self.funded!r} are not addresses")


@dataclass(frozen=True)
class Entry:
    """One block.

    Parameters
    ----------
    transaction : str
        The signed transaction as raw bytes, in hex with 0x.
    time : int
        Of the block, in seconds since 1970.
    block : str
        Hash of the block, in hex with 0x.
    """

    transaction: str
    time: int
    block: str

    def __post_init__(self) -> None:
        _require_whole(time=self.time)
        if not (_is_hex(self.transaction) and _is_hex(self.block)):
            raise ValueError("transaction and block must be in hex, with 0x")


Line = TypeVar("Line", Genesis, Entry)


class Journal:
    """A journal file, open for appending.

    Parameters
    ----------
    path : Path
        Created if it is not there.
    genesis : Genesis
        How the chain begins if the journal is new.

    Raises
    ------
    JournalError
        If the file is damaged, or another process has it open.
    """

    def __init__(self, path: Path, genesis: Genesis) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        try:
            self._file = open_locked(path)
        except BlockingIOError:
            raise JournalError(f"{path} is in use by another process") from None
        try:
            self._drop_torn_line()
            if self._file.seek(0, os.SEEK_END) == 0:
                self._write(genesis)
                sync_directory(path.parent)
            self.genesis, self.entries = read(path)
        except BaseException:
            self._file.close()
            raise

    def append(self, entry: Entry) -> None:
        """Add a block; it is on the disk when this returns."""
        self._write(entry)
        self.entries.append(entry)

    def close(self) -> None:
        """Close the file and let others open it."""
        self._file.close()

    def _write(self, line: Genesis | Entry) -> None:
        size = self._path.stat().st_size
        rest = json.dumps(asdict(line)).encode() + b"\n"
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError:
            os.truncate(self._path, size)
            raise

    def _drop_torn_line(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            self._file.truncate(whole)


def read(path: Path) -> tuple[Genesis, list[Entry]]:
    """The genesis and the blocks that the journal at `path` holds; a torn last line is left out.

    Raises
    ------
    JournalError
        If the file is not there, or a line is not what it should be.
    """
    try:
        content = path.read_bytes()
    except OSError as fault:
        raise JournalError(f"{path}: {fault.strerror}") from fault
    lines = content[: content.rfind(b"\n") + 1].splitlines()
    if not lines:
        raise JournalError(f"{path} is empty: not a journal")
    genesis = _parse(path, 1, lines[0], Genesis)
    return genesis, list(_parse_entries(path, lines[1:]))


def _parse_entries(path: Path, lines: list[bytes]) -> Iterator[Entry]:
    for number, line in enumerate(lines, 2):
        yield _parse(path, number, line, Entry)


def _parse(path: Path, number: int, line: bytes, kind: type[Line]) -> Line:
    try:
        values: dict[str, Any] = json.loads(line)
        if kind is Genesis:
            _require_format(values.get("format"))
            values["funded"] = tuple(values["funded"])
        return kind(**values)
    except (ValueError, TypeError, KeyError, AttributeError) as fault:
        raise JournalError(f"{path}, line {number} is damaged: {fault}") from fault


def _require_format(found: object) -> None:
    if found != FORMAT:
        raise ValueError(f"format {found!r}, but this version reads {FORMAT!r}")


def _is_hex(value: object) -> bool:
    return isinstance(value, str) and value.startswith("0x") and is_hex(value)


def _require_whole(**values: int) -> None:
    for name, value in values.items():
        if type(value) is not int or value < 0:
            raise ValueError(f"{name} = {value!r} is not a whole number")
