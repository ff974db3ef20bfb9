"""flower-chain grant and revoke: who may open what is sealed, after the run has begun."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from eth_account.signers.local import LocalAccount
from eth_utils.address import is_address, to_checksum_address

from flower_chain.cli.arguments import DryRun, LedgerUrl, RunFolder, account_of
from flower_chain.cli.money import Order, carry_out, signed
from flower_chain.cli.reporting import console
from flower_chain.errors import ConfigError, FormatError, SealError, StoreError
from flower_chain.keys import reader_of
from flower_chain.ledger import EmbeddedLedger
from flower_chain.ledger.access import Access, AccessList
from flower_chain.run import AnyRun, SealedFile
from flower_chain.store.cid import cid_to_bytes

GranterKey = Annotated[
    Path,
    typer.Option(help="Key file or keystore of the account in whose name it is done: it signs."),
]
Round = Annotated[int | None, typer.Option("--round", help="Only what was made in this round.")]
Device = Annotated[str, typer.Option("--of", help="Only what the device with this account made.")]
Payer = Annotated[
    Path | None,
    typer.Option(
        help="Key file or keystore of an account that sends it and pays the gas; without it, that "
        "of --key does."
    ),
]


def grant(
    run: RunFolder,
    reader: Annotated[
        str,
        typer.Argument(
            metavar="READER-PUBLIC-KEY",
            help="In hex, as `flower-chain keys show FILE --public-key` prints it.",
        ),
    ],
    key: GranterKey,
    number: Round = None,
    device: Device = "",
    payer: Payer = None,
    ledger: LedgerUrl = None,
    dry_run: DryRun = False,
) -> None:
    """Let one more reader open what is sealed: all that the key opens, or some of it.

    The stored files stay as they are: their keys are wrapped for the reader, and put on the ledger.
    """
    with signed(run, payer or key, ledger, dry_run) as (opened, sender):
        granter = sender if payer is None else account_of(key)
        public_key = _public_key(reader)
        name = reader_of(public_key)
        wraps = _wraps(opened, granter, public_key, _chosen(opened, number, device))
        what = f"Grant {name} access to {len(wraps)} sealed files"
        if opened.access_list is None and dry_run:
            _rehearse(what, opened, granter, sender, name, wraps)
            return
        access = opened.access_list or _created(opened, sender)
        calls = access.grant(granter, name, wraps)
        carry_out(Order(what, access.contract, calls, []), opened, sender, dry_run)


def revoke(
    run: RunFolder,
    reader: Annotated[str, typer.Argument(metavar="READER", help="Public key in hex, or address.")],
    key: GranterKey,
    number: Round = None,
    device: Device = "",
    payer: Payer = None,
    ledger: LedgerUrl = None,
    dry_run: DryRun = False,
) -> None:
    """Take back what the key has granted to a reader, or some of it.

    What the reader has opened meanwhile it knows, and may have kept: see docs/access.md.
    """
    with signed(run, payer or key, ledger, dry_run) as (opened, sender):
        granter = sender if payer is None else account_of(key)
        name = to_checksum_address(reader) if is_address(reader) else reader_of(_public_key(reader))
        chosen = {file.cid for file in _chosen(opened, number, device)}
        cids = [cid for cid in _granted(opened.access(), granter, name) if cid in chosen]
        access = opened.access_list
        if access is None or not cids:
            raise ConfigError(f"nothing to revoke: {granter.address} granted {name} nothing of it")
        what = f"Revoke the access of {name} to {len(cids)} sealed files"
        calls = access.revoke(granter, name, cids)
        carry_out(Order(what, access.contract, calls, []), opened, sender, dry_run)


def _chosen(run: AnyRun, number: int | None, device: str) -> list[SealedFile]:
    """The files of a round and of a device, or of all."""
    if device and not is_address(device):
        raise ConfigError(f"--of {device!r} is not an address")
    return [
        file
        for file in run.sealed_files()
        if number in (None, file.round) and device.lower() in ("", file.device.lower())
    ]


def _wraps(
    run: AnyRun, granter: LocalAccount, reader: bytes, files: Sequence[SealedFile]
) -> dict[bytes, bytes]:
    """By CID, the keys of what can be granted to a reader; ConfigError if it is nothing."""
    access, name = run.access(), reader_of(reader)
    if name in access.sealed_for:
        raise ConfigError(f"{name} needs no grant: all of the run is sealed for it")
    granted = _granted(access, granter, name)
    wraps = {}
    for file in _kept(run, files):
        if file.cid in granted or not access.has(granter.address, file.cid):
            continue
        try:
            own = access.wrap(granter.address, file.cid)
            wraps[file.cid] = run.rewrap(file, granter, reader, own)
        except (StoreError, FormatError, SealError) as fault:
            console.print(f"Passed over {file}: {fault}", soft_wrap=True, markup=False)
    if not wraps:
        raise ConfigError(
            f"nothing to grant: of these {len(files)} sealed files {granter.address} can open none "
            f"that it has not granted to {name}"
        )
    return wraps


def _kept(run: AnyRun, files: Sequence[SealedFile]) -> list[SealedFile]:
    """Those that must be stored, or are anyway: a node would look for the others for long."""
    first = run.kept_from()
    held = set(map(cid_to_bytes, run.store.stored())) if first else set()
    kept = [file for file in files if file.round >= first or file.cid in held]
    if gone := len(files) - len(kept):
        console.print(
            f"Passed over {gone} files of rounds before {first}, which the plan does not keep."
        )
    return kept


def _granted(access: Access, granter: LocalAccount, reader: str) -> list[bytes]:
    """The CIDs of what an account has granted to a reader and not taken back."""
    found = [grant for grant in access.grants if not grant.revoked]
    return [g.cid for g in found if (g.granter, g.reader) == (granter.address, reader)]


def _created(run: AnyRun, sender: LocalAccount) -> AccessList:
    """A new access list, as the run has none."""
    made = run.open_access_list(sender)
    gas = made.contract.events()[0].receipt.gas_used
    console.print(f"Created the access list {made.contract.address}, {gas:,} gas.", soft_wrap=True)
    return made


def _rehearse(
    what: str,
    run: AnyRun,
    granter: LocalAccount,
    sender: LocalAccount,
    reader: str,
    wraps: dict[bytes, bytes],
) -> None:
    """Tell the gas of a first grant, by making it on a ledger that is thrown away."""
    with (
        TemporaryDirectory() as folder,
        EmbeddedLedger(Path(folder) / "ledger.journal", [sender.address]) as ledger,
    ):
        access = AccessList.deploy(ledger, sender, run.contract.address)
        receipts = [access.contract.events()[0].receipt]
        for function, batch in access.grant(granter, reader, wraps):
            receipts.append(access.contract.transact(sender, function, batch))
    gas = sum(receipt.gas_used for receipt in receipts)
    console.print(f"{what}.")
    console.print(
        f"On chain {run.pointers.chain_id}, on an access list that is created first; about {gas:,} "
        f"gas, paid by {sender.address}.",
        soft_wrap=True,
    )
    console.print("Dry run: nothing was sent.")


def _public_key(text: str) -> bytes:
    """A reader's public key, or ConfigError."""
    try:
        key = bytes.fromhex(text.removeprefix("0x"))
        reader_of(key)
    except (ValueError, FormatError) as fault:
        shown = text if len(text) <= 42 else f"{text[:42]}..."
        raise ConfigError(f"{shown!r} is not a public key: {fault}") from None
    return key
