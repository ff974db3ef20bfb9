"""flower-chain enrol, fund, withdraw and finish: transactions that an operator sends by hand."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any

import typer
from eth_account.signers.local import LocalAccount
from eth_utils.address import is_address, to_checksum_address
from rich.table import Table

from flower_chain.cli.arguments import DryRun, LedgerUrl, RunFolder, account_of
from flower_chain.cli.reporting import console, reporting
from flower_chain.errors import ConfigError
from flower_chain.ledger import Contract
from flower_chain.ledger.blockflow import Stage
from flower_chain.ledger.federation import BATCH, batches
from flower_chain.records import TOKEN_UNITS
from flower_chain.run import AnyRun, DataTrustRun, PeersRun, RecordAndRewardRun, open_run
from flower_chain.strategy.settings import read_accounts

OwnerKey = Annotated[
    Path, typer.Option("--owner-key", help="Key file or keystore of the run's owner.")
]


@dataclass(frozen=True)
class Move:
    """A balance that changes.

    Parameters
    ----------
    name : str
        Whose it is.
    account : str
        Its address.
    before, change : int
        In the token's smallest unit.
    """

    name: str
    account: str
    before: int
    change: int


@dataclass(frozen=True)
class Order:
    """What an operator wants done.

    Parameters
    ----------
    what : str
        In words.
    contract : Contract
    calls : list of tuple
        Function and arguments, one transaction each.
    moves : list of Move
    """

    what: str
    contract: Contract
    calls: list[tuple[Any, ...]]
    moves: list[Move]


def enrol(
    run: RunFolder,
    devices: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE_OR_ACCOUNT...", help="Accounts, or files with one account on a line."
        ),
    ],
    owner_key: OwnerKey,
    ledger: LedgerUrl = None,
    dry_run: DryRun = False,
) -> None:
    """Let devices contribute to a run: accounts, or files with one account on a line."""
    with _of_the_owner(run, owner_key, ledger, dry_run) as (opened, signer):
        accounts = list(dict.fromkeys(_accounts(devices)))
        known = {account for account in accounts if opened.federation.is_enrolled(account)}
        for account in accounts:
            console.print(account, "is enrolled already" if account in known else "")
        new = [account for account in accounts if account not in known]
        calls = [("enrol", some) for some in batches(new, BATCH)]
        what = f"Enrol {len(new)} of {len(accounts)} devices"
        _carry_out(Order(what, opened.federation.contract, calls, []), opened, signer, dry_run)


def fund(
    run: RunFolder,
    tokens: Annotated[str, typer.Argument(help="How many, 12.5 for example.")],
    key: Annotated[Path, typer.Option(help="Key file or keystore of the account that pays.")],
    ledger: LedgerUrl = None,
    dry_run: DryRun = False,
) -> None:
    """Put tokens, 12.5 for example, into a run's pool."""
    with _of_the_owner(run, key, ledger, dry_run) as (opened, signer):
        units, federation = _units(tokens), opened.federation
        if federation.contract.call("finished"):
            raise ConfigError(f"the run at {federation.contract.address} is finished")
        moves = [
            Move("payer", signer.address, _balance(opened, signer.address), -units),
            Move("pool", federation.contract.address, federation.pool, units),
        ]
        calls = [("transfer", federation.contract.address, units)]
        what = f"Put {in_full(units)} tokens into the pool"
        _carry_out(Order(what, opened.token, calls, moves), opened, signer, dry_run)


def withdraw(
    run: RunFolder,
    key: Annotated[
        Path, typer.Option(help="Key file or keystore of the account that pays the gas.")
    ],
    account: Annotated[
        str, typer.Argument(metavar="[ACCOUNT]", help="Whose; without it, the one that pays.")
    ] = "",
    ledger: LedgerUrl = None,
    dry_run: DryRun = False,
) -> None:
    """Send an account what the run owes it; without ACCOUNT, the one that pays the gas.

    Anyone may do so for anyone: the money can go nowhere else. What an agent of BlockFLow or of
    a data trust was refunded and nobody has claimed for it is claimed with it.
    """
    with _signed(run, key, ledger, dry_run) as (opened, signer):
        contract, whose = opened.contract, _address(account or signer.address)
        units = int(contract.call("credits", whose))
        call: tuple[Any, ...] = ("withdraw", whose)
        if isinstance(opened, PeersRun) and whose in opened.experiment.agents:
            agent = opened.experiment.number_of(whose)
            _, unclaimed = contract.call("agents", agent)
            claim = contract.encode("claim", [agent])
            units, call = units + unclaimed, ("multicall", [claim, contract.encode(*call)])
        moves = [
            Move("owed", contract.address, units, -units),
            Move("account", whose, _balance(opened, whose), units),
        ]
        what = f"Send {in_full(units)} tokens to {whose}"
        _carry_out(Order(what, contract, [call], moves), opened, signer, dry_run)


def finish(
    run: RunFolder, owner_key: OwnerKey, ledger: LedgerUrl = None, dry_run: DryRun = False
) -> None:
    """End a run: nobody can contribute any more, and the owner gets the rest of the pool.

    A data trust's task ends by itself: then its requester gets what nobody earned of the reward.
    """
    with _signed(run, owner_key, ledger, dry_run) as (opened, signer):
        if isinstance(opened, DataTrustRun):
            rest, call = _unearned(opened)
            what = f"Send the {in_full(rest)} tokens that nobody earned to the requester"
        else:
            rest, call = _rest_of_pool(_of_an_owner(opened, run)), ("finish",)
            what = f"End the run, and send the {in_full(rest)} tokens of the pool to its owner"
        owner = to_checksum_address(opened.contract.call("owner"))
        moves = [
            Move("pool", opened.contract.address, rest, -rest),
            Move("owner", owner, _balance(opened, owner), rest),
        ]
        _carry_out(Order(what, opened.contract, [call], moves), opened, signer, dry_run)


def _rest_of_pool(run: RecordAndRewardRun) -> int:
    """What is in the pool, if all is settled."""
    if run.contract.call("round")[0]:
        raise ConfigError(
            f"version {run.federation.version} holds contributions that are not settled: "
            "start the server for one round more"
        )
    return run.federation.pool


def _unearned(run: DataTrustRun) -> tuple[int, tuple[Any, ...]]:
    """What nobody earned of a reward, with what is credited already, and how it is sent."""
    if (stage := run.experiment.progress.stage) is not Stage.FINISHED:
        raise ConfigError(f"the task is at the stage {stage}: it ends by itself")
    contract, owner = run.contract, to_checksum_address(run.contract.call("owner"))
    rest = contract.call("pool") - contract.call("held") + contract.call("credits", owner)
    calls = [contract.encode("sweep"), contract.encode("withdraw", owner)]
    return rest, ("multicall", calls)


def in_full(units: int) -> str:
    """An amount of tokens, with all its digits."""
    whole, rest = divmod(abs(units), TOKEN_UNITS)
    digits = f"{rest:018}".rstrip("0")
    return f"{'-' * (units < 0)}{whole:,}{'.' * bool(digits)}{digits}"


@contextmanager
def _signed(
    path: Path, key_file: Path, ledger: str | None, dry_run: bool
) -> Iterator[tuple[AnyRun, LocalAccount]]:
    """A run and who signs; a dry run only reads, so that it can be done while the run goes on."""
    with reporting():
        signer = account_of(key_file)
        with closing(open_run(path, None if dry_run else signer, ledger)) as run:
            yield run, signer


@contextmanager
def _of_the_owner(
    path: Path, key_file: Path, ledger: str | None, dry_run: bool
) -> Iterator[tuple[RecordAndRewardRun, LocalAccount]]:
    """The same, of a scheme whose owner enrols the devices and pays them."""
    with _signed(path, key_file, ledger, dry_run) as (run, signer):
        yield _of_an_owner(run, path), signer


def _of_an_owner(run: AnyRun, path: Path) -> RecordAndRewardRun:
    """A run whose owner enrols the devices and pays them, or ConfigError."""
    if isinstance(run, PeersRun):
        raise ConfigError(
            f"{path} is a run of {run.scheme}: who takes part in it, and what they share, is "
            "agreed before it begins, and it ends by itself"
        )
    return run


def _carry_out(order: Order, run: AnyRun, signer: LocalAccount, dry_run: bool) -> None:
    """Say what is going to happen, and do it."""
    gas = sum(order.contract.estimate(signer.address, *call) for call in order.calls)
    console.print(f"{order.what}.")
    if order.moves:
        console.print(_table(order.moves))
    where = f"chain {run.pointers.chain_id}, contract {order.contract.address}"
    console.print(f"On {where}; about {gas:,} gas, paid by {signer.address}.", soft_wrap=True)
    if dry_run:
        console.print("Dry run: nothing was sent.")
        return
    for function, *args in order.calls:
        receipt = order.contract.transact(signer, function, *args)
        done = f"Done: transaction {receipt.transaction}, {receipt.gas_used:,} gas."
        console.print(done, soft_wrap=True)


def _table(moves: Sequence[Move]) -> Table:
    table = Table()
    table.add_column()
    table.add_column("account", no_wrap=True)
    for name in ("before", "change", "after"):
        table.add_column(name, justify="right", overflow="fold")
    for move in moves:
        amounts = (move.before, move.change, move.before + move.change)
        table.add_row(move.name, move.account, *map(in_full, amounts))
    return table


def _balance(run: AnyRun, account: str) -> int:
    return int(run.token.call("balanceOf", account))


def _accounts(words: Sequence[str]) -> Iterator[str]:
    for word in words:
        if is_address(word):
            yield to_checksum_address(word)
        else:
            yield from read_accounts(Path(word))


def _address(text: str) -> str:
    if not is_address(text):
        raise ConfigError(f"{text!r} is not an address")
    return to_checksum_address(text)


def _units(tokens: str) -> int:
    """Tokens in the smallest unit, or ConfigError."""
    try:
        units = Decimal(tokens) * TOKEN_UNITS
    except InvalidOperation:
        raise ConfigError(f"{tokens!r} is not a number of tokens") from None
    if not units.is_finite() or not 0 < units < 2**256 or units != int(units):
        raise ConfigError(f"{tokens} tokens: it must be a positive number, of at most 18 decimals")
    return int(units)
