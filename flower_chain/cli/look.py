"""flower-chain show and verify: what happened in a run, and whether it is right."""

import json
from collections import deque
from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import track

from flower_chain.cli.arguments import LedgerUrl, RunFolder, StorePlace, examiner_of, reader_from
from flower_chain.cli.reporting import console, reporting
from flower_chain.report import summary_of
from flower_chain.run import open_run
from flower_chain.verify import Report, verify

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
ReaderKey = Annotated[
    Path | None,
    typer.Option(
        "--key",
        "--owner-key",
        help="Key file of who may open what is sealed: the owner or a reader; where agents "
        "judge each other, one of them or a reader.",
    ),
]
ExaminerName = Annotated[
    str | None,
    typer.Option(
        help="MODULE:FUNCTION that returns the owner's Examiner, to recompute validation errors; "
        "MODULE is looked for in the working directory too."
    ),
]


def show(run: RunFolder, ledger: LedgerUrl = None, as_json: AsJson = False) -> None:
    """Show what happened: who was accepted, refused or scored in which round, balances, gas."""
    with reporting(as_json), closing(open_run(run, None, ledger)) as opened:
        summary = summary_of(opened)
        if as_json:
            print(json.dumps(summary.to_json(), indent=1))
            return
        for table in summary.tables():
            console.print(table)


def verify_run(
    run: RunFolder,
    key: ReaderKey = None,
    examiner: ExaminerName = None,
    ledger: LedgerUrl = None,
    store: StorePlace = None,
    as_json: AsJson = False,
) -> None:
    """Recompute every decision and payment; exit status 1 names the first record that is wrong."""
    with reporting(as_json), closing(open_run(run, None, ledger, store)) as opened:
        reader = None if key is None else reader_from(key)
        steps = verify(opened, reader, None if examiner is None else examiner_of(examiner))
        report = _last(steps if as_json else track(steps, "Verifying", console=console))
        if as_json:
            print(json.dumps({"verified": True, **asdict(report)}, indent=1))
            return
        for kind, number in report.checked.items():
            console.print(f"[green]ok[/] {number:6,} {kind}")
        for left_out in report.unchecked:
            console.print(f"[yellow]not checked[/] {left_out}")
        console.print("[green]Everything that was checked fits.[/]")


def _last(reports: Iterable[Report]) -> Report:
    (report,) = deque(reports, maxlen=1)
    return report
