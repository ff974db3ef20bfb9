"""flower-chain store: what runs keep off the chain, on a node or in a directory."""

from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TransferSpeedColumn,
    track,
)
from rich.table import Table

from flower_chain import durable
from flower_chain.cli.arguments import DryRun, LedgerUrl, RunFolder, StorePlace
from flower_chain.cli.reporting import console, reporting
from flower_chain.errors import ConfigError
from flower_chain.run import AnyRun, Content, open_run
from flower_chain.store import Store, open_store

app = typer.Typer(
    no_args_is_help=True,
    help="Fetch, store, list, move and remove models and what is sealed.",
)

SomeRun = Annotated[
    Path | None,
    typer.Argument(metavar="[RUN]", help="Folder of a run; its store, if --store names none."),
]
Keep = Annotated[
    int | None,
    typer.Option(min=0, help="Rounds before the current one to keep, 0 for all; else by the plan."),
]

HERE, FOUND, REMOVED, MISSING = "here", "elsewhere", "removed", "missing"


@app.command()
def get(
    cid: Annotated[str, typer.Argument(help="As the ledger names it, and `ls` tells it.")],
    run: SomeRun = None,
    store: StorePlace = None,
    to: Annotated[
        Path | None, typer.Option(help="File to write; without it, one named by the CID.")
    ] = None,
) -> None:
    """Fetch what is under a CID, checked against it."""
    target = Path(cid) if to is None else to
    with _opened(run, store) as opened, _bars() as bars:
        try:
            with durable.replacing(target) as copy:
                task = bars.add_task(cid, total=None)
                for piece in opened.pieces(cid):
                    copy.write(piece)
                    bars.advance(task, len(piece))
        except OSError as fault:
            raise ConfigError(f"--to {target} can't be written: {fault.strerror}") from None
    size = decimal(target.stat().st_size)
    console.print(f"{size} written to {target}, checked against its CID.", soft_wrap=True)


@app.command()
def put(
    file: Annotated[Path, typer.Argument(help="What to store.")],
    run: SomeRun = None,
    store: StorePlace = None,
) -> None:
    """Store a file, and print its CID; on a node it is pinned."""
    with _opened(run, store) as opened, _bars() as bars:
        try:
            source = bars.open(file, "rb", description=file.name)
        except OSError as fault:
            raise ConfigError(f"{file} can't be read: {fault.strerror}") from None
        with source:
            cid = opened.put_file(source)
    print(cid)


@app.command()
def ls(run: RunFolder, store: StorePlace = None, ledger: LedgerUrl = None) -> None:
    """List what the ledger names: what it is, whose, how large, and if it is there."""
    with reporting(), closing(open_run(run, None, ledger, store)) as opened:
        contents, held = opened.contents(), opened.store.stored()
        states = _states(opened, contents, held)
        table = Table("round", "what", "whose", "there", "bytes")
        table.add_column("CID", overflow="fold", min_width=59)
        for each in contents:
            size = f"{held[each.cid]:,}" if each.cid in held else ""
            state = states[each.cid]
            shown = f"[red]{state}[/]" if state == MISSING and each.is_needed else state
            table.add_row(str(each.round), each.kind, each.device, shown, size, each.cid)
        console.print(table)
        unnamed = held.keys() - {each.cid for each in contents}
        size = decimal(sum(held.values()))
        console.print(f"{len(held)} files of {size} in {opened.store},", end=" ", soft_wrap=True)
        console.print(f"{len(unnamed)} of which the ledger does not name.", soft_wrap=True)


@app.command()
def gc(
    run: RunFolder,
    keep: Keep = None,
    store: StorePlace = None,
    ledger: LedgerUrl = None,
    dry_run: DryRun = False,
) -> None:
    """Remove what the ledger does not name, or is of rounds before those that are kept.

    From a directory files are deleted; on a node they are unpinned, and their space is free after
    its own `ipfs repo gc`.
    """
    with reporting(), closing(open_run(run, None, ledger, store)) as opened:
        kept, contents = {each.cid for each in opened.kept(keep)}, opened.contents()
        if opened.kept_from(keep) > opened.kept_from():
            promised = opened.plan.keep_rounds or "all"
            console.print(f"[yellow]The plan keeps {promised} rounds: `verify` will fail.[/]")
        with nullcontext() if dry_run else opened.alone():
            held = opened.store.stored()
            old = [cid for cid in held if cid not in kept]
            for line in _summary(contents, old):
                console.print(line)
            size = decimal(sum(held[cid] for cid in old))
            if dry_run:
                console.print(f"Dry run: {len(old)} files of {size} would be removed.")
                return
            for cid in track(old, "Removing", console=console):
                opened.store.remove(cid)
        console.print(f"{len(old)} files of {size} removed, {len(held) - len(old)} are left.")


@app.command()
def move(
    run: RunFolder,
    to: Annotated[
        str,
        typer.Argument(
            metavar="[URL]", help="Of an IPFS node; without it, the directory store/ in the run."
        ),
    ] = "",
    ledger: LedgerUrl = None,
) -> None:
    """Copy what a run has stored to another store, where it goes on; the old one stays as it is.

    Afterwards the server must be started with the same URL as chain.store, or with none.
    """
    with reporting(), closing(open_run(run, None, ledger)) as opened:
        total = len(opened.kept())
        moved = len(list(track(opened.move(to), "Moving", total, console=console)))
        console.print(f"The run goes on in {to or run / 'store'}: {moved} files.", soft_wrap=True)


@contextmanager
def _opened(run: Path | None, store: str | None) -> Iterator[Store]:
    """The store of a run, or at a place."""
    with reporting():
        if run is not None:
            with closing(open_run(run, None, None, store)) as opened:
                yield opened.store
        elif store is not None:
            with open_store(store) as bare:
                yield bare
        else:
            raise ConfigError("name the folder of a run, or a --store")


def _bars() -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    return Progress(*columns, console=Console(stderr=True))


def _states(run: AnyRun, contents: list[Content], held: Collection[str]) -> dict[str, str]:
    """By CID, whether it is there; what is not in the store itself is asked for, all at once."""
    states = {each.cid: HERE for each in contents if each.cid in held}
    first = run.kept_from()
    removed = {each.cid: REMOVED for each in contents if each.round < first}
    asked = [each.cid for each in contents if each.cid not in states | removed]
    with ThreadPoolExecutor(32) as threads:
        found = threads.map(run.store.__contains__, asked)
        shown = track(found, "Looking", len(asked), console=Console(stderr=True))
        answers = dict(zip(asked, shown, strict=True))
    return removed | states | {cid: FOUND if there else MISSING for cid, there in answers.items()}


def _summary(contents: list[Content], old: list[str]) -> Iterator[str]:
    """What is to be removed, in a line for each round."""
    gone = [each for each in contents if each.cid in old]
    for number, some in groupby(gone, lambda each: each.round):
        kinds = [each.kind for each in some]
        told = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
        yield f"round {number}: {told}"
    if unnamed := len(set(old) - {each.cid for each in gone}):
        yield f"{unnamed} that the ledger does not name"
