"""Who was given access to what is sealed."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from flower_chain.errors import FormatError
from flower_chain.ledger.access import Access, Granted
from flower_chain.report import base
from flower_chain.run import SealedFile
from flower_chain.store.cid import cid_from_bytes


@dataclass(frozen=True)
class Grant:
    """One grant.

    Parameters
    ----------
    granter, reader : str
    round : int or None
        Of the file's version or round; None if the run has no such file.
    device : str
        Who made the file; empty likewise.
    cid : str
    state : str
        ``stands``, ``revoked``, or ``void`` if the granter may not open the file.
    """

    granter: str
    reader: str
    round: int | None
    device: str
    cid: str
    state: str


@dataclass(frozen=True)
class Shared(base.Summary):
    """What happened in a run of whatever scheme, and who was given access.

    Parameters
    ----------
    run : Summary
    grants : list of Grant
        In the order of the ledger.
    """

    run: base.Summary
    grants: list[Grant]

    def tables(self) -> Iterator[RenderableType]:
        """For people."""
        yield from self.run.tables()
        if self.grants:
            yield _table(self.grants)

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return self.run.to_json() | {"grants": [asdict(grant) for grant in self.grants]}


def summarise(access: Access, files: Iterable[SealedFile]) -> list[Grant]:
    """The grants of a run that holds these files."""
    by_cid = {file.cid: file for file in reversed(list(files))}
    standing = set(access.standing)
    return [_grant(grant, by_cid.get(grant.cid), grant in standing) for grant in access.grants]


def _grant(grant: Granted, file: SealedFile | None, stands: bool) -> Grant:
    state = "revoked" if grant.revoked else "stands" if stands else "void"
    number, device = (None, "") if file is None else (file.round, file.device)
    return Grant(grant.granter, grant.reader, number, device, _name(grant.cid), state)


def _name(cid: bytes) -> str:
    """The CID as text, or in hex if it is none."""
    try:
        return cid_from_bytes(cid)
    except FormatError:
        return f"0x{cid.hex()}"


def _table(grants: Iterable[Grant]) -> Table:
    """A row for each grant."""
    table = Table(title="Access granted", title_justify="left")
    table.add_column("by", no_wrap=True)
    table.add_column("to", no_wrap=True)
    table.add_column("round", justify="right")
    table.add_column("of", no_wrap=True)
    table.add_column("")
    for grant in grants:
        number = "-" if grant.round is None else str(grant.round)
        table.add_row(grant.granter, grant.reader, number, grant.device or "-", grant.state)
    return table
