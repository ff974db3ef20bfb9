"""flower-chain: look at a run, and check it."""

import importlib
import json
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from flower_chain import keys
from flower_chain.errors import ConfigError, FlowerChainError
from flower_chain.examiner import Examiner
from flower_chain.report import devices_table, in_tokens, rounds_table, summarise, to_json
from flower_chain.run import Run
from flower_chain.verify import Report, verify

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
console = Console(width=None if sys.stdout.isatty() else 110)

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run's records.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
OwnerKey = Annotated[
    Path | None,
    typer.Option(help="Key file of the owner or of a reader, to open the sealed updates."),
]
ExaminerName = Annotated[
    str | None,
    typer.Option(
        help="MODULE:FUNCTION that returns the owner's Examiner, to recompute validation errors; "
        "MODULE is looked for in the working directory too."
    ),
]


@app.command()
def show(run: RunFolder, as_json: AsJson = False) -> None:
    """Show what happened: versions, who was accepted or refused and why, balances, gas."""
    with _reporting(as_json), closing(Run.open(run)) as opened:
        federation = opened.federation
        summary = summarise(federation.history(), federation.contract.address, federation.pool)
        if as_json:
            print(json.dumps(to_json(summary), indent=1))
            return
        console.print(rounds_table(summary.rounds))
        console.print(devices_table(summary.devices))
        console.print(f"Left in the pool: {in_tokens(summary.pool)} tokens")


@app.command(name="verify")
def verify_run(
    run: RunFolder,
    owner_key: OwnerKey = None,
    examiner: ExaminerName = None,
    as_json: AsJson = False,
) -> None:
    """Recompute every decision and payment; exit status 1 names the first record that is wrong."""
    with _reporting(as_json), closing(Run.open(run)) as opened:
        owner = None if owner_key is None else keys.load(owner_key)
        steps = verify(opened, owner, _examiner(examiner))
        report = _last(steps if as_json else track(steps, "Verifying", console=console))
        if as_json:
            print(json.dumps({"verified": True, **asdict(report)}, indent=1))
            return
        for kind, number in report.checked.items():
            console.print(f"[green]ok[/] {number:6,} {kind}")
        for left_out in report.unchecked:
            console.print(f"[yellow]not checked[/] {left_out}")
        console.print("[green]Everything that was checked fits.[/]")


@app.command()
def account(
    key_file: Annotated[Path, typer.Argument(help="Key file or keystore.")],
    public_key: Annotated[bool, typer.Option("--public-key", help="Print that instead.")] = False,
) -> None:
    """Print the account of a key file, which is made if it is not there."""
    with _reporting(as_json=False):
        found = keys.load_or_create(key_file)
        print(keys.public_key(found).hex() if public_key else found.address)


@contextmanager
def _reporting(as_json: bool) -> Iterator[None]:
    """One line for what goes wrong on purpose, and exit status 1."""
    try:
        yield
    except FlowerChainError as fault:
        if as_json:
            print(json.dumps({"verified": False, "error": type(fault).__name__, "why": str(fault)}))
        else:
            console.print(f"[red]{type(fault).__name__}[/] {fault}", soft_wrap=True)
        raise typer.Exit(1) from None


def _last(reports: Iterable[Report]) -> Report:
    (report,) = deque(reports, maxlen=1)
    return report


def _examiner(name: str | None) -> Examiner | None:
    """What MODULE:FUNCTION returns."""
    if name is None:
        return None
    module, _, function = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        made = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError, TypeError, ValueError) as fault:
        raise ConfigError(f"--examiner {name}: {fault}") from fault
    if not isinstance(made, Examiner):
        raise ConfigError(f"--examiner {name}: it returned {made!r}, not an Examiner")
    return made
