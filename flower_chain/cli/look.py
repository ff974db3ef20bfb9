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

from flower_chain.cli.arguments import LedgerUrl, RunFolder, account_of, examiner_of
from flower_chain.cli.reporting import console, reporting
from flower_chain.report import devices_table, in_tokens, rounds_table, summarise, to_json
from flower_chain.run import RecordAndRewardRun
from flower_chain.verify import Report, verify

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


def show(run: RunFolder, ledger: LedgerUrl = None, as_json: AsJson = False) -> None:
    """Show what happened: versions, who was accepted or refused and why, balances, gas."""
    with reporting(as_json), closing(RecordAndRewardRun.open(run, None, ledger)) as opened:
        federation = opened.federation
        summary = summarise(federation.history(), federation.contract.address, federation.pool)
        if as_json:
            print(json.dumps(to_json(summary), indent=1))
            return
        console.print(rounds_table(summary.rounds))
        console.print(devices_table(summary.devices))
        console.print(f"Left in the pool: {in_tokens(summary.pool)} tokens")


def verify_run(
    run: RunFolder,
    owner_key: OwnerKey = None,
    examiner: ExaminerName = None,
    ledger: LedgerUrl = None,
    as_json: AsJson = False,
) -> None:
    """Recompute every decision and payment; exit status 1 names the first record that is wrong."""
    with reporting(as_json), closing(RecordAndRewardRun.open(run, None, ledger)) as opened:
        owner = None if owner_key is None else account_of(owner_key)
        steps = verify(opened, owner, None if examiner is None else examiner_of(examiner))
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
